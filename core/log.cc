#include "core/log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>

namespace livemv::core {
namespace {

// Forwards to another sink, or keeps lines in memory while held.
class HoldingSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit HoldingSink(spdlog::sink_ptr out) : out_(std::move(out)) {
    out_->set_pattern("%v");
  }
  void Hold() {
    std::lock_guard lock(mutex_);
    held_ = true;
  }
  void Release() {
    std::lock_guard lock(mutex_);
    held_ = false;
    for (const auto& line : lines_)
      Write(line);
    lines_.clear();
    out_->flush();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& msg) override {
    spdlog::memory_buf_t buf;
    formatter_->format(msg, buf);
    while (buf.size() > 0 && buf[buf.size() - 1] == '\n')
      buf.resize(buf.size() - 1);
    std::string line(buf.data(), buf.size());
    if (!held_)
      Write(line);
    else if (lines_.size() < 4096)
      lines_.push_back(std::move(line));
  }
  void flush_() override {
    if (!held_)
      out_->flush();
  }

 private:
  void Write(const std::string& line) {
    out_->log(spdlog::details::log_msg("", spdlog::level::info, line));
  }
  spdlog::sink_ptr out_;
  bool held_ = false;
  std::deque<std::string> lines_;
};

std::shared_ptr<HoldingSink>& TheSink() {
  static std::shared_ptr<HoldingSink> sink;
  return sink;
}

}  // namespace

void StartLog(const std::string& path, const std::string& role) {
  spdlog::sink_ptr out;
  if (path.empty()) {
    out = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    mode_t old = umask(0077);
    try {
      out = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    } catch (const spdlog::spdlog_ex&) {
      // A full or read-only disk must not stop a migration: log to stderr.
      out = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    }
    umask(old);
  }
  TheSink() = std::make_shared<HoldingSink>(out);
  auto logger = std::make_shared<spdlog::logger>(role, TheSink());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %n[%P] %l %v");
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
}

void HoldLogs() {
  if (TheSink())
    TheSink()->Hold();
}

void ReleaseLogs() {
  if (TheSink())
    TheSink()->Release();
}

void CheckFailed(const char* file, int line, const char* cond) {
  // First past all buffers: abort flushes none, and the log may be what broke.
  dprintf(STDERR_FILENO, "%s:%d: broken invariant: %s\n", file, line, cond);
  SPDLOG_CRITICAL("{}:{}: broken invariant: {}", file, line, cond);
  ReleaseLogs();
  spdlog::shutdown();
  std::abort();
}

}  // namespace livemv::core

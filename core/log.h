#pragma once

// Logging: spdlog behind a few macros, in fmt syntax:
//   LOG_INFO("attached {} in {} us", dir, us);
// An error is logged once, where it is handled. During a freeze the process
// logs to memory only (HoldLogs), because a holder may be what drains the log.
//
// Thread contract: all functions and macros from any thread.

#include <spdlog/spdlog.h>

#include <string>

namespace livemv::core {

// Sends the log to a file (created 0600, appended) or, with an empty path, to
// standard error. role ("worker", "supervisor") is put before each line.
void StartLog(const std::string& path, const std::string& role);
// Between the two calls nothing is written to the file; lines are kept in
// memory, at most 4096 of them, and written at ReleaseLogs.
void HoldLogs();
void ReleaseLogs();

// What CHECK calls: the reason goes to the log, held lines included, and to
// standard error; then the process aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* cond);

}  // namespace livemv::core

#define LOG_DEBUG(...) SPDLOG_DEBUG(__VA_ARGS__)
#define LOG_INFO(...) SPDLOG_INFO(__VA_ARGS__)
#define LOG_WARN(...) SPDLOG_WARN(__VA_ARGS__)
#define LOG_ERROR(...) SPDLOG_ERROR(__VA_ARGS__)

// CHECK: an invariant whose breach could corrupt data. Always on.
#define CHECK(cond)                                         \
  do {                                                      \
    if (!(cond)) [[unlikely]]                               \
      ::livemv::core::CheckFailed(__FILE__, __LINE__, #cond); \
  } while (false)

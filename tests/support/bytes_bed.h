#pragma once

// The whole bytes lane over the fake kernel: a source, a target, a journal in
// memory, and a worker's objects, which can die and be made again.

#include <gtest/gtest.h>
#include <fcntl.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/state/node_table.h"
#include "fusefs/cutter.h"
#include "fusefs/data_path.h"
#include "migrator/copy/copy_back.h"
#include "migrator/copy/copy_engine.h"
#include "tests/support/fake_syscalls.h"
#include "tests/support/memory_journal.h"

namespace livemv::fake {

inline constexpr uint64_t kMiB = state::kChunkBytes;

// A TargetWriter whose next calls can be made to hang: they are given up, and
// land when the test says so.
class StubbornWriter final : public fusefs::TargetWriter {
 public:
  explicit StubbornWriter(fusefs::ObjectStore* objects) : inline_(objects) {}

  Outcome Write(state::FileId id, std::span<const char> data, uint64_t off,
                int64_t limit, Late late) override {
    if (hang && hang()) {
      late_.push_back({id, std::string(data.data(), data.size()), off, false,
                       std::move(late)});
      return {core::Fail(core::ErrorCode::kTimeout, "stubborn"), true};
    }
    return inline_.Write(id, data, off, limit, {});
  }
  Outcome FSync(state::FileId id, int64_t limit, Late late) override {
    if (hang && hang()) {
      late_.push_back({id, "", 0, true, std::move(late)});
      return {core::Fail(core::ErrorCode::kTimeout, "stubborn"), true};
    }
    return inline_.FSync(id, limit, {});
  }

  struct Call {
    state::FileId id;
    std::string data;
    uint64_t off;
    bool is_fsync;
    Late late;
  };
  // The oldest call that hangs takes effect and returns.
  bool Land() {
    if (late_.empty())
      return false;
    Call call = std::move(late_.front());
    late_.pop_front();
    Outcome outcome = call.is_fsync
                          ? inline_.FSync(call.id, -1, {})
                          : inline_.Write(call.id, call.data, call.off, -1, {});
    call.late(std::move(outcome.status));
    return true;
  }
  size_t Hanging() const { return late_.size(); }
  std::deque<Call> TakeHanging() { return std::exchange(late_, {}); }

  std::function<bool()> hang;

 private:
  fusefs::InlineTargetWriter inline_;
  std::deque<Call> late_;
};

struct BytesBed {
  // A worker: everything that dies with it.
  struct Worker final : fusefs::BytesListener {
    Worker(BytesBed* bed, copy::CopyEngine::Options options)
        : nodes(&bed->journal),
          source(&bed->sys, bed->sys.OpenRoot(bed->source_fs), &nodes),
          objects(&bed->sys, bed->sys.OpenRoot(bed->target_fs), ".livemv-t",
                  &bed->journal),
          ledger(&table, &source, &objects, &bed->journal),
          writer(&objects),
          data(&ledger, &writer),
          cutter(&ledger),
          engine(&ledger, options),
          back(&ledger) {
      ledger.SetListener(this);
      auto root = bed->sys.NameToHandle(source.RootFd(), "");
      if (!root)
        std::abort();
      nodes.SetRoot(*root);
    }
    void AttrsTouched(state::FileId) override {
      touched++;
      if (auto meanwhile = std::exchange(when_touched, nullptr))
        meanwhile();
    }
    void CopyWanted(state::FileId id, bool urgent) override {
      engine.Enqueue(id, urgent);
    }

    state::NodeTable nodes;
    fusefs::SourceTree source;
    fusefs::ObjectStore objects;
    fusefs::FileTable table;
    fusefs::ByteLedger ledger;
    StubbornWriter writer;
    fusefs::DataPath data;
    fusefs::Cutter cutter;
    copy::CopyEngine engine;
    copy::CopyBack back;
    uint64_t touched = 0;
    std::function<void()> when_touched;  // once
  };

  explicit BytesBed(FakeSyscalls::Kind target_kind = FakeSyscalls::Kind::kNfs)
      : source_fs(sys.AddFs(FakeSyscalls::Kind::kLocal)),
        target_fs(sys.AddFs(target_kind)) {}

  // Redirect begins (with a syncfs of the source), or a successor takes over.
  void Start(const std::string& boot = "boot-1") {
    state::RecoveredState state = journal.Recover(boot, ++pid);
    worker = std::make_unique<Worker>(this, options);
    for (const auto& [id, file] : state.files)
      if (file.bound)
        worker->objects.Adopt(
            id, {file.bound->handle, file.bound->ino, file.bound->type});
    ASSERT_TRUE(worker->objects.Prepare().has_value());
    worker->table.Adopt(state);
    worker->data.SetServing(fusefs::Serving::kRedirect);
    worker->engine.EnqueueUnfinished(state);
    uint32_t epoch = worker->ledger.BeginSourceSync();
    ASSERT_TRUE(sys.SyncFs(worker->source.RootFd()).has_value());
    worker->ledger.EndSourceSync(epoch, true);
  }
  // kill -9: what the kernel has stays.
  void Kill() {
    worker.reset();
    sys.CloseAll();
  }
  void PowerCut(std::mt19937_64& rng) {
    worker.reset();
    sys.PowerCut(rng);
    journal.PowerCut(rng);
  }

  // A file on the source before the migration, durable.
  void MakeSource(const std::string& name, const std::string& content) {
    core::UniqueFd root = sys.OpenRoot(source_fs);
    auto fd = sys.OpenAt(root.Get(), name.c_str(), O_CREAT | O_RDWR, 0644);
    ASSERT_TRUE(fd.has_value());
    if (!content.empty()) {
      ASSERT_TRUE(sys.PWrite(fd->Get(), content.data(), content.size(), 0)
                      .has_value());
    }
    sys.MakeAllDurable(source_fs);
  }
  // As the name lane does for a create through the overlay.
  state::FileId Create(const std::string& name) {
    core::UniqueFd root = sys.OpenRoot(source_fs);
    auto fd = sys.OpenAt(root.Get(), name.c_str(), O_CREAT | O_EXCL | O_RDWR,
                         0644);
    state::FileId id = Id(name);
    if (!fd || !worker->data.NewFile(id))
      std::abort();
    return id;
  }
  state::FileId Id(const std::string& name) {
    auto id = worker->source.IdOf(worker->source.RootFd(), name.c_str());
    return id ? *id : state::kNoFile;
  }

  core::Result<size_t> Write(state::FileId id, uint64_t off,
                             const std::string& bytes) {
    return worker->data.Write(id, off, bytes, O_RDWR, false);
  }
  std::string Read(state::FileId id, uint64_t off, size_t len) {
    std::string buf(len, '?');
    auto n = worker->data.Read(id, off, buf);
    if (!n)
      return "error: " + n.error().ToString();
    buf.resize(*n);
    return buf;
  }
  std::string ReadAll(state::FileId id) {
    auto size = worker->data.SizeOf(id);
    return size ? Read(id, 0, *size) : "error: " + size.error().ToString();
  }
  std::string OnTarget(state::FileId id) {
    auto object = worker->objects.Find(id);
    return object ? sys.Content(target_fs, object->ino) : "no object";
  }
  std::string OnSource(const std::string& name) {
    auto ino = sys.InoOf(source_fs, name);
    return ino ? sys.Content(source_fs, *ino) : "no file";
  }
  // Copies and cuts until nothing is left to do.
  void Settle() {
    for (int i = 0; i < 1000; i++) {
      bool did = worker->cutter.Step();
      did = worker->engine.Step() || did;
      if (!did && worker->engine.Idle() && worker->cutter.Idle())
        return;
      if (!did)
        sys.AdvanceClock(100'000'000);
    }
    FAIL() << "the copier did not finish: "
           << worker->engine.GetProgress().reason;
  }

  FakeSyscalls sys;
  FakeSyscalls::FsId source_fs, target_fs;
  MemoryJournal journal;
  copy::CopyEngine::Options options;
  std::unique_ptr<Worker> worker;
  uint32_t pid = 0;
};

}  // namespace livemv::fake

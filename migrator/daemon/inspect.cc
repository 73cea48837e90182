#include "migrator/daemon/inspect.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cinttypes>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {

using core::Result;
using core::Status;
using core::UniqueFd;
using fusefs::FileRef;
using nlohmann::json;
using state::FileId;

namespace {

constexpr size_t kMostLines = 200;
constexpr int64_t kLongestWalkNs = 30'000'000'000;

// What is known of one file's bytes.
struct FileLine {
  std::string path;
  FileId id = state::kNoFile;
  uint64_t size = 0, local_end = 0;
  uint64_t chunks = 0, copied = 0, hot = 0;
  uint64_t remote_bytes = 0;  // below the local end
  bool known = false;         // false: the source's alone, nothing copied
  bool cut_owed = false, open = false, bound = false;

  bool Pending() const { return size > 0 && (copied < chunks || cut_owed); }
  bool HasRemote() const { return remote_bytes > 0 || size > local_end; }
};

FileLine LineOf(WorkerParts* parts, FileId id, const std::string& path,
                uint64_t source_size) {
  FileLine line;
  line.path = path;
  line.id = id;
  line.size = line.local_end = source_size;
  line.chunks = (source_size + state::kChunkBytes - 1) / state::kChunkBytes;
  line.bound = parts->objects->Find(id).has_value();
  line.open = parts->table->IsOpen(id);
  FileRef record = parts->table->Find(id);
  if (!record)
    return line;
  core::MutexLock lock(record->mu);
  const fusefs::FileFacts& facts = record->facts;
  if (!facts.pinned)
    return line;
  line.known = true;
  line.local_end = facts.map.local_end();
  line.size = facts.size_known ? facts.size : line.local_end;
  line.chunks = facts.map.Chunks();
  for (uint64_t chunk = 0; chunk < line.chunks; chunk++) {
    line.copied += facts.map.IsCopied(chunk);
    line.hot += facts.map.IsHot(chunk);
  }
  for (const auto& segment : facts.map.Split(0, line.local_end)) {
    if (segment.owner == state::ByteMap::Owner::kTarget)
      line.remote_bytes += segment.len;
  }
  line.cut_owed = record->cut.has_value();
  return line;
}

std::string Mode(const FileLine& line) {
  if (!line.known)
    return "on the source alone";
  if (line.local_end == 0)
    return "on the target alone";
  if (line.size > line.local_end || line.remote_bytes > 0)
    return line.copied >= line.chunks ? "copied, grown on the target"
                                      : "being copied, grown on the target";
  return line.copied >= line.chunks ? "copied" : "being copied";
}

json ToJson(const FileLine& line) {
  return {{"path", line.path},
          {"file_id", line.id},
          {"size", line.size},
          {"local_end", line.local_end},
          {"chunks", line.chunks},
          {"copied", line.copied},
          {"hot", line.hot},
          {"remote_below_end", line.remote_bytes},
          {"target_alone",
           line.size > line.local_end ? line.size - line.local_end : 0},
          {"cut_owed", line.cut_owed},
          {"open", line.open},
          {"bound", line.bound},
          {"mode", Mode(line)}};
}

std::string Hex(FileId id) {
  char buf[24];
  std::snprintf(buf, sizeof buf, "0x%" PRIx64, id);
  return buf;
}

Inspection OfFile(const FileLine& line) {
  Inspection out;
  out.text =
      Printable(line.path) + "\n  file id     " + Hex(line.id) +
      "\n  mode        " + Mode(line) + "\n  size        " +
      std::to_string(line.size) + "\n  local end   " +
      std::to_string(line.local_end) + "  (bytes below it are the source's" +
      (line.remote_bytes > 0
           ? " but " + std::to_string(line.remote_bytes) + " remote ones"
           : "") +
      ")\n  chunks      " + std::to_string(line.copied) + " of " +
      std::to_string(line.chunks) + " copied, " + std::to_string(line.hot) +
      " hot\n  target      " +
      (line.bound ? "has an object" : "has nothing of it yet") +
      (line.cut_owed ? ", a cut is owed" : "") + "\n  open        " +
      (line.open ? "yes, through the overlay" : "no");
  out.details = ToJson(line).dump(-1, ' ', false,
                                  json::error_handler_t::replace);
  return out;
}

struct Walk {
  WorkerParts* parts = nullptr;
  InspectRequest request;
  int64_t deadline = 0;
  uint64_t files = 0, dirs = 0, others = 0;
  uint64_t pending = 0, remote = 0, matching = 0;
  uint64_t bytes = 0, remote_bytes = 0;
  std::vector<FileLine> lines;
  bool cut_short = false;
};

void Add(Walk& walk, const FileLine& line) {
  walk.files++;
  walk.bytes += line.size;
  const bool pending = line.Pending() && (!line.known || line.copied <
                                                             line.chunks ||
                                          line.cut_owed);
  walk.pending += pending;
  walk.remote += line.HasRemote();
  walk.remote_bytes +=
      line.remote_bytes +
      (line.size > line.local_end ? line.size - line.local_end : 0);
  if ((walk.request.only_pending && !pending) ||
      (walk.request.only_remote && !line.HasRemote()))
    return;
  walk.matching++;
  if ((walk.request.only_pending || walk.request.only_remote) &&
      walk.lines.size() < kMostLines)
    walk.lines.push_back(line);
}

Status WalkDir(Walk& walk, UniqueFd dir, const std::string& path) {
  core::Syscalls* sys = walk.parts->sys.get();
  for (int64_t offset = 0;;) {
    auto entries = sys->ReadDir(dir.Get(), offset, 64 << 10);
    if (!entries && entries.error().sys_errno == ENOENT)
      return {};  // removed meanwhile
    if (!entries)
      return core::Fail(std::move(entries).error());
    if (entries->empty())
      return {};
    for (const core::DirEntry& entry : *entries) {
      offset = entry.next_offset;
      if (entry.name == "." || entry.name == "..")
        continue;
      if (MonotonicNs() > walk.deadline) {
        walk.cut_short = true;
        return {};
      }
      Result<core::Stat> st = sys->StatAt(dir.Get(), entry.name.c_str());
      if (!st)
        continue;  // removed meanwhile
      const std::string below =
          path.empty() ? entry.name : path + "/" + entry.name;
      if (S_ISDIR(st->stx_mode)) {
        walk.dirs++;
        Result<UniqueFd> child =
            sys->OpenAt(dir.Get(), entry.name.c_str(),
                        O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (child)
          TRY(WalkDir(walk, std::move(*child), below));
      } else if (S_ISREG(st->stx_mode)) {
        Result<FileId> id =
            walk.parts->source->IdOf(dir.Get(), entry.name.c_str());
        if (id)
          Add(walk, LineOf(walk.parts, *id, below, st->stx_size));
      } else {
        walk.others++;
      }
    }
  }
}

Result<Inspection> OfTree(WorkerParts* parts, const InspectRequest& request,
                          UniqueFd dir) {
  Walk walk;
  walk.parts = parts;
  walk.request = request;
  walk.deadline = MonotonicNs() + kLongestWalkNs;
  TRY(WalkDir(walk, std::move(dir), request.path));
  fusefs::Redo::Counters redo = parts->redo->Count();
  Inspection out;
  out.text = (request.path.empty() ? parts->settings.dir
                                   : Printable(request.path)) +
             "\n  files       " + FormatCount(walk.files) + ", " +
             FormatBytes(walk.bytes) + "; " + FormatCount(walk.dirs) +
             " directories, " + FormatCount(walk.others) + " others" +
             "\n  pending     " + FormatCount(walk.pending) +
             " files of which the target lacks something" +
             "\n  remote      " + FormatCount(walk.remote) + " files with " +
             FormatBytes(walk.remote_bytes) + " that the target alone has" +
             "\n  redo        " + FormatCount(redo.pending) +
             " names and attributes to follow, " +
             FormatCount(redo.set_aside) + " set aside";
  if (walk.cut_short)
    out.text += "\n  (cut short after 30 s)";
  json list = json::array();
  for (const FileLine& line : walk.lines) {
    out.text += "\n  " + Printable(line.path) + "  " + Mode(line) + ", " +
                std::to_string(line.copied) + "/" +
                std::to_string(line.chunks) + " chunks";
    list.push_back(ToJson(line));
  }
  if ((request.only_pending || request.only_remote) &&
      walk.matching > walk.lines.size())
    out.text += "\n  and " + FormatCount(walk.matching - walk.lines.size()) +
                " more";
  for (const fusefs::Redo::Aside& aside : parts->redo->SetAsides(20))
    out.text += "\n  set aside: " +
                (aside.place.IsEntry() ? Printable(aside.place.name)
                                       : "attributes of " +
                                             Hex(aside.place.id)) +
                ": " + aside.reason;
  out.details = json({{"path", request.path},
                      {"files", walk.files},
                      {"directories", walk.dirs},
                      {"others", walk.others},
                      {"bytes", walk.bytes},
                      {"pending", walk.pending},
                      {"remote", walk.remote},
                      {"remote_bytes", walk.remote_bytes},
                      {"redo_pending", redo.pending},
                      {"set_aside", redo.set_aside},
                      {"cut_short", walk.cut_short},
                      {"matching", list}})
                    .dump(-1, ' ', false, json::error_handler_t::replace);
  return out;
}

}  // namespace

Result<Inspection> Inspect(WorkerParts* parts, const InspectRequest& request) {
  core::Syscalls* sys = parts->sys.get();
  const std::string path = request.path.empty() ? "." : request.path;
  ASSIGN_OR_RETURN(UniqueFd fd, sys->OpenAt(parts->source->RootFd(),
                                            path.c_str(),
                                            O_PATH | O_NOFOLLOW));
  ASSIGN_OR_RETURN(core::Stat st, sys->StatAt(fd.Get(), ""));
  if (S_ISDIR(st.stx_mode)) {
    ASSIGN_OR_RETURN(UniqueFd dir,
                     sys->OpenAt(fd.Get(), ".", O_RDONLY | O_DIRECTORY));
    return OfTree(parts, request, std::move(dir));
  }
  ASSIGN_OR_RETURN(FileId id, parts->source->IdOf(fd.Get(), ""));
  if (S_ISREG(st.stx_mode))
    return OfFile(LineOf(parts, id, request.path, st.stx_size));
  Inspection out;
  out.text = Printable(request.path) + "\n  file id     " + Hex(id) +
             "\n  not a regular file: names and attributes only" +
             "\n  target      " +
             (parts->objects->Find(id) ? "has an object"
                                       : "has nothing of it yet");
  out.details = json({{"path", request.path}, {"file_id", id}})
                    .dump(-1, ' ', false, json::error_handler_t::replace);
  return out;
}

}  // namespace livemv::daemon

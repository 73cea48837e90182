#include "migrator/cutover/opener.h"

#include <cstring>

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

// fs/fuse/inode.c, fuse_encode_fh: 64-bit nodeid high half first, generation.
constexpr int kFuseHandleType = 0x81;
constexpr int64_t kOpenOnTargetNs = 30'000'000'000;
// It asks no filesystem.
constexpr int64_t kSourceHandlesNs = 1'000'000'000;

// The root of the view that want must be opened in.
Result<UniqueFd> ViewRoot(DescriptorOps* files, const Views* views,
                          const Want& want) {
  auto view = views->find(want.view);
  if (view == views->end())
    return Fail(ErrorCode::kGone, "its mount namespace does not show the tree");
  return files->DirectoryIn(view->second.first, view->second.second);
}

Result<UniqueFd> OpenInView(DescriptorOps* files, const Views* views,
                            const Want& want, uint64_t ino) {
  ASSIGN_OR_RETURN(UniqueFd root, ViewRoot(files, views, want));
  return files->OpenBeneath(root.Get(), want.path, want.flags, ino);
}

}  // namespace

Status PathOpener::Open(std::vector<Opening>* openings) {
  std::vector<Opening*> not_there;
  for (Opening& o : *openings) {
    auto fd = o.want->view != 0
                  ? OpenInView(files_, views_, *o.want, o.want->ino)
                  : files_->OpenBeneath(root_fd_, o.want->path, o.want->flags,
                                        o.want->ino);
    if (fd) {
      o.fd = std::move(*fd);
      continue;
    }
    o.why_not = fd.error().ToString();
    if (overlay_ != nullptr && o.want->view == 0 &&
        FileIdOf(o.key->object) != state::kNoFile)
      not_there.push_back(&o);
  }
  if (!not_there.empty())
    OpenByHandle(not_there);
  return {};
}

void PathOpener::OpenByHandle(const std::vector<Opening*>& openings) {
  std::vector<state::FileId> ids;
  for (const Opening* o : openings)
    ids.push_back(FileIdOf(o->key->object));
  auto handles =
      overlay_->SourceHandles(ids, clock_->NowNs() + kSourceHandlesNs);
  for (size_t i = 0; i < openings.size(); ++i) {
    Opening& o = *openings[i];
    if (!handles) {
      o.why_not += "; " + handles.error().ToString();
      continue;
    }
    const core::FileHandle& handle = (*handles)[i];
    if (handle.bytes.empty())
      continue;
    auto fd = files_->OpenObject(root_fd_, handle, o.want->flags, o.want->ino);
    if (fd)
      o.fd = std::move(*fd);
    else
      o.why_not += "; " + fd.error().ToString();
  }
}

Status TargetOpener::Open(std::vector<Opening>* openings) {
  std::vector<OpenAsk> asks;
  std::vector<size_t> asked;
  for (size_t i = 0; i < openings->size(); ++i) {
    Opening& o = (*openings)[i];
    OpenAsk ask;
    ask.id = FileIdOf(o.key->object);
    ask.flags = o.want->flags;
    ask.path_hint = o.want->path;
    if (ask.id == state::kNoFile) {
      o.why_not = "the overlay gives no file handle for it";
      continue;
    }
    asks.push_back(std::move(ask));
    asked.push_back(i);
  }
  if (asks.empty())
    return {};
  ASSIGN_OR_RETURN(
      std::vector<UniqueFd> fds,
      overlay_->OpenOnTarget(asks, clock_->NowNs() + kOpenOnTargetNs));
  if (fds.size() != asks.size())
    return Fail(ErrorCode::kCorrupt,
                "the worker opened " + std::to_string(fds.size()) + " of " +
                    std::to_string(asks.size()) + " files on the target");
  for (size_t n = 0; n < fds.size(); ++n) {
    Opening& o = (*openings)[asked[n]];
    if (!fds[n]) {
      o.why_not = "it is not on the target";
      continue;
    }
    if (o.want->view == 0) {
      o.fd = std::move(fds[n]);
      continue;
    }
    // The same directory on the mount that the holder's namespace shows.
    auto ino = files_->InodeOf(fds[n].Get());
    if (!ino) {
      o.why_not = ino.error().ToString();
      continue;
    }
    auto fd = OpenInView(files_, views_, *o.want, *ino);
    if (fd)
      o.fd = std::move(*fd);
    else
      o.why_not = fd.error().ToString();
  }
  return {};
}

std::string ObjectName(int type, const void* bytes, size_t len) {
  std::string name(reinterpret_cast<const char*>(&type), sizeof type);
  name.append(static_cast<const char*>(bytes), len);
  return name;
}

state::FileId FileIdOf(const std::string& object) {
  return NodeIdOf(object) & ~state::kAliasBit;
}

core::FileHandle FuseHandle(state::FileId node) {
  const uint32_t words[3] = {static_cast<uint32_t>(node >> 32),
                             static_cast<uint32_t>(node), 0};
  return {kFuseHandleType,
          std::string(reinterpret_cast<const char*>(words), sizeof words)};
}

state::FileId NodeIdOf(const std::string& object) {
  int type = 0;
  uint32_t words[2];
  if (object.size() < sizeof type + sizeof words)
    return state::kNoFile;
  std::memcpy(&type, object.data(), sizeof type);
  std::memcpy(words, object.data() + sizeof type, sizeof words);
  if (type != kFuseHandleType)
    return state::kNoFile;
  return static_cast<state::FileId>(words[0]) << 32 | words[1];
}

void Stock::Put(WantKey key, Opened opened) {
  stock_.emplace(std::move(key), std::move(opened));
}

Stock::Opened Stock::Take(const WantKey& key, const Want& want, bool by_path) {
  auto [at, end] = stock_.equal_range(key);
  auto best = end;
  for (; at != end; ++at) {
    if (by_path && at->second.path != want.path)
      continue;
    if (best == end)
      best = at;
    if (SameLocks(at->second.locks, want.locks)) {
      best = at;
      break;
    }
  }
  if (best == end)
    return {};
  Opened opened = std::move(best->second);
  stock_.erase(best);
  return opened;
}

}  // namespace livemv::cutover

#include "migrator/proc/tree_locator.h"

#include <fcntl.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "migrator/proc/proc_files.h"

namespace livemv::proc {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

void Doubt(Viewer* viewer, std::string what) {
  viewer->doubts.push_back(std::move(what));
}

}  // namespace

uint64_t NamespaceNumber(std::string_view link) {
  const size_t open = link.find('[');
  uint64_t number = 0;
  if (open != std::string_view::npos)
    std::from_chars(link.data() + open + 1, link.data() + link.size(), number);
  return number;
}

core::Status TreeLocator::Begin() {
  if (root_fd_ >= 0) {
    const std::string name = "/proc/self/fd/" + std::to_string(root_fd_);
    ASSIGN_OR_RETURN(root_link_, ReadLink(AT_FDCWD, name.c_str()));
    ASSIGN_OR_RETURN(struct statx root, PeekAt(root_fd_, ""));
    root_dev_ = DevOf(root);
    // open_by_handle_at takes no O_PATH descriptor. A whole filesystem needs
    // no look-ups by handle, and an overlay is not to be asked.
    if (!tree_.WholeFilesystem()) {
      ASSIGN_OR_RETURN(root_, OpenDir(root_fd_, "."));
    }
  }
  ASSIGN_OR_RETURN(core::UniqueFd self, OpenDir(AT_FDCWD, "/proc/self"));
  ASSIGN_OR_RETURN(std::string ns, ReadLink(self.Get(), "ns/mnt"));
  TRY(mounts_.Load(self.Get(), NamespaceNumber(ns)));
  return {};
}

std::optional<std::string> TreeLocator::LocatePath(
    std::string_view link) const {
  for (const std::string& path :
       mounts_.PossiblePathsInFs(tree_.sb_dev, link)) {
    if (auto in_tree = PathInTree(tree_, path))
      return in_tree;
  }
  return std::nullopt;
}

core::Result<std::optional<Place>> TreeLocator::LocateLink(
    Viewer* viewer, int dir, const char* link_name) {
  auto st = PeekAt(dir, link_name);
  if (!st) {
    // A link that leads nowhere the reader may go is an object of a
    // filesystem that answers so; the tree's does not.
    if (st.error().sys_errno == ESTALE)
      return std::optional<Place>();
    return core::Fail(st.error());
  }
  if (DevOf(*st) != tree_.dev)
    return std::optional<Place>();
  return Locate(viewer, dir, link_name, *st);
}

core::Result<std::optional<Place>> TreeLocator::Locate(Viewer* viewer, int dir,
                                                       const char* link_name,
                                                       const struct statx& st) {
  Place place;
  place.dev = tree_.dev;
  place.ino = st.stx_ino;
  place.mode = st.stx_mode;
  place.nlink = st.stx_nlink;
  place.mnt_id = st.stx_mnt_id;
  auto read = ReadLink(dir, link_name);
  if (!read) {
    if (read.error().sys_errno != ENAMETOOLONG)
      return core::Fail(read.error());
    if (!tree_.WholeFilesystem()) {
      Doubt(viewer,
            "holds an object of this filesystem whose path is longer "
            "than the kernel tells");
      return std::optional<Place>();
    }
    place.path_known = false;
    return place;
  }
  std::string link = std::move(*read);
  std::string with_suffix;
  if (link.ends_with(kDeleted)) {
    with_suffix = link;
    link.resize(link.size() - kDeleted.size());
    place.deleted = true;
  }
  if (mounts_.Find(place.mnt_id) == nullptr && !viewer->tables_loaded) {
    viewer->tables_loaded = true;
    core::Status loaded = mounts_.Load(viewer->proc_dir, viewer->mnt_ns);
    if (!loaded)
      return core::Fail(loaded.error());
  }
  std::optional<std::string> path = mounts_.PathInFs(place.mnt_id, link);
  if (!path) {
    // A mount that no namespace shows: detached, or unmounted lazily. Its
    // paths begin at its own root.
    if (!tree_.WholeFilesystem()) {
      if (S_ISDIR(st.stx_mode) && st.stx_ino == tree_.root_ino) {
        place.path = ".";
        return place;
      }
      Doubt(viewer, "holds \"" + link +
                        "\" of this filesystem through a mount that no "
                        "namespace shows");
      return std::optional<Place>();
    }
    path = link;
  }
  auto in_tree = PathInTree(tree_, *path);
  if (!in_tree)
    return std::optional<Place>();
  place.path = std::move(*in_tree);
  if (place.deleted)
    ResolveDeleted(&place, with_suffix);
  return place;
}

void TreeLocator::ResolveDeleted(Place* place,
                                 const std::string& with_suffix) const {
  // " (deleted)" is also what a file may be called, and what FUSE's
  // invalidation of a name makes the kernel print for a file that is there.
  if (place->nlink == 0)
    return;
  if (root_fd_ < 0) {
    place->deleted = !tree_.names_expire;
    return;
  }
  auto leads_here = [&](const std::string& path) {
    auto st = PeekAt(root_fd_, path.c_str());
    return st && st->stx_ino == place->ino && DevOf(*st) == root_dev_;
  };
  if (leads_here(place->path)) {
    place->deleted = false;
  } else if (with_suffix.ends_with(place->path + std::string(kDeleted)) &&
             leads_here(place->path + std::string(kDeleted))) {
    place->path += kDeleted;
    place->deleted = false;
  }
}

bool TreeLocator::LocateWatch(Watch* watch) const {
  const WatchLine& line = watch->line;
  if (line.mnt_id >= 0) {
    const MountLine* mount = mounts_.Find(static_cast<uint64_t>(line.mnt_id));
    return mount != nullptr && mount->dev == tree_.sb_dev;
  }
  if (line.sdev != tree_.sb_dev)
    return false;
  if (line.ino == 0 || tree_.WholeFilesystem())
    return true;
  watch->certain = false;
  if (!root_ || line.handle.empty() || line.handle.size() > MAX_HANDLE_SZ)
    return true;
  struct {
    struct file_handle head;
    char room[MAX_HANDLE_SZ];
  } handle = {};
  handle.head.handle_bytes = static_cast<unsigned>(line.handle.size());
  handle.head.handle_type = line.handle_type;
  std::copy(line.handle.begin(), line.handle.end(),
            reinterpret_cast<char*>(handle.head.f_handle));
  core::UniqueFd object(
      open_by_handle_at(root_.Get(), &handle.head, O_PATH | O_CLOEXEC));
  if (!object)
    return true;
  const std::string name = "/proc/self/fd/" + std::to_string(object.Get());
  auto link = ReadLink(AT_FDCWD, name.c_str());
  auto st = PeekAt(object.Get(), "");
  if (!link || !st)
    return true;
  // Both links are on one mount, so their difference is the path; a look at
  // where it leads tells it from one that only looks so.
  const std::optional<std::string> below = PathBelow(root_link_, *link);
  if (below) {
    auto there = PeekAt(root_fd_, below->c_str());
    if (there && there->stx_ino == st->stx_ino) {
      watch->path = below->empty() ? "." : *below;
      watch->certain = true;
      return true;
    }
    return true;
  }
  auto elsewhere = PeekAt(AT_FDCWD, link->c_str());
  return !(elsewhere && elsewhere->stx_ino == st->stx_ino &&
           DevOf(*elsewhere) == DevOf(*st));
}

}  // namespace livemv::proc

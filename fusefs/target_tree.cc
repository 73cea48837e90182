#include "fusefs/target_tree.h"

namespace livemv::fusefs {

core::Result<SharedFd> TargetTree::Path(state::FileId id) {
  return objects_->Path(id);
}
core::Result<SharedFd> TargetTree::Data(state::FileId id) {
  return objects_->Data(id);
}
core::Result<SharedFd> TargetTree::Dir(state::FileId id) {
  return objects_->Dir(id);
}

core::Result<state::FileId> TargetTree::Meet(core::UniqueFd path_fd,
                                             const core::Stat& stat,
                                             SharedFd* shared) {
  ASSIGN_OR_RETURN(core::FileHandle handle,
                   sys()->NameToHandle(path_fd.Get(), ""));
  state::FileId id = objects_->NumberOf(Object{
      std::move(handle), stat.stx_ino, static_cast<uint32_t>(stat.stx_mode & S_IFMT)});
  // Not kept: a descriptor of ours makes an application's unlink leave a
  // .nfs name behind (hazard H37).
  if (shared != nullptr)
    *shared = std::make_shared<const core::UniqueFd>(std::move(path_fd));
  return id;
}

core::Status TargetTree::Pin(state::FileId id) {
  ASSIGN_OR_RETURN(SharedFd fd, Path(id));
  ASSIGN_OR_RETURN(core::Stat st, sys()->StatAt(fd->Get(), ""));
  // Opened for data: the NFS client keeps an open file under a name of its
  // own, so that it can still be read and written.
  if (S_ISREG(st.stx_mode)) {
    ASSIGN_OR_RETURN(fd, Data(id));
  }
  core::MutexLock lock(mu_);
  pinned_[id] = std::move(fd);
  return {};
}

void TargetTree::Drop(state::FileId id) {
  SharedFd pinned;
  {
    core::MutexLock lock(mu_);
    if (auto it = pinned_.find(id); it != pinned_.end()) {
      pinned = std::move(it->second);
      pinned_.erase(it);
    }
  }
  objects_->Drop(id);
}

bool TargetTree::Hidden(state::FileId dir, const char* name) {
  return dir == state::kRootId && objects_->private_name() == name;
}

}  // namespace livemv::fusefs

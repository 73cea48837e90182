#include "migrator/daemon/overlay_tree.h"

#include <poll.h>
#include <sys/stat.h>

#include <cerrno>

namespace livemv::daemon {

// The overlay is one whole filesystem, and its root shows the source's inode
// number; so nobody has to be asked for this.
core::Result<proc::TreeRef> OverlayTree(dev_t overlay_dev, int source_dir_fd,
                                        int fuse_fd) {
  struct stat st{};
  if (::fstat(source_dir_fd, &st) != 0)
    return core::FailSys(errno, "stat of the source's root");
  proc::TreeRef tree;
  tree.dev = tree.sb_dev = overlay_dev;
  tree.root_ino = st.st_ino;
  tree.path_in_fs = "/";
  tree.names_expire = true;
  // The connection ends before the number is given back (fs/fuse/inode.c,
  // fuse_kill_sb_anon), and its end is POLLERR (fs/fuse/dev.c, fuse_dev_poll).
  tree.lives = [fuse_fd] {
    struct pollfd p = {fuse_fd, 0, 0};
    return ::poll(&p, 1, 0) == 0;
  };
  return tree;
}

}  // namespace livemv::daemon

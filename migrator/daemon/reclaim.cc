// The process that deletes what the target's mount covers, on `finish
// --reclaim`: everything below the private clone of the source. The clone
// shows no other mount and lies on the source's own filesystem, so nothing
// else can be reached.

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>

#include "core/log.h"
#include "migrator/daemon/control.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/roles.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {

using core::FailSys;
using core::Status;
using core::UniqueFd;

namespace {

struct Reclaimed {
  uint64_t bytes = 0, files = 0;
  int errors = 0;
  std::string first_error;
};

void Note(Reclaimed* sum, const std::string& name, int err) {
  sum->errors++;
  if (sum->first_error.empty())
    sum->first_error =
        Printable(name) + ": " + core::Error::System(err, "delete").ToString();
}

// Deletes what is in the directory, not the directory. dev: its filesystem.
void Empty(UniqueFd dirfd, dev_t dev, bool is_root, Reclaimed* sum) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(dirfd.Get()),
                                          &::closedir);
  if (!dir)
    return Note(sum, ".", errno);
  int fd = dirfd.Release();  // the stream's now
  while (const struct dirent* item = ::readdir(dir.get())) {
    const std::string name = item->d_name;
    if (name == "." || name == ".." || (is_root && name == "lost+found"))
      continue;
    struct stat st{};
    if (::fstatat(fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      Note(sum, name, errno);
      continue;
    }
    if (S_ISDIR(st.st_mode)) {
      UniqueFd child(::openat(fd, name.c_str(),
                              O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (!child || st.st_dev != dev) {
        Note(sum, name, child ? EXDEV : errno);
        continue;
      }
      Empty(std::move(child), dev, false, sum);
    }
    if (::unlinkat(fd, name.c_str(), S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) !=
        0) {
      Note(sum, name, errno);
      continue;
    }
    if (!S_ISDIR(st.st_mode) && st.st_nlink == 1) {
      sum->bytes += static_cast<uint64_t>(st.st_blocks) * 512;
      sum->files++;
    }
  }
}

}  // namespace

int ReclaimMain(Handoff handoff, Channel supervisor) {
  auto answer = [&](Exit exit, const std::string& text) {
    Status sent = supervisor.Send(MakeReply(exit, text));
    if (!sent)
      LOG_ERROR("reclaim: {}", sent.error().ToString());
    return static_cast<int>(exit);
  };
  int source = handoff.Borrow(fd_name::kSource);
  struct stat st{};
  UniqueFd root(
      ::openat(source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root || ::fstat(root.Get(), &st) != 0)
    return answer(Exit::kHuman, core::Error::System(errno, "open the covered "
                                                           "source")
                                    .ToString());
  Reclaimed sum;
  Empty(std::move(root), st.st_dev, true, &sum);
  std::string text = "deleted " + FormatCount(sum.files) +
                     " old files, which frees " + FormatBytes(sum.bytes);
  if (sum.errors > 0)
    return answer(Exit::kHuman, text + "; " + std::to_string(sum.errors) +
                                    " could not be deleted, the first: " +
                                    sum.first_error);
  LOG_INFO("{}", text);
  return answer(Exit::kDone, text);
}

}  // namespace livemv::daemon

#pragma once

// UNIX sockets bound to files, from sock_diag(7), of every network namespace.
//
// Thread contract: BoundSockets starts and joins one thread for each foreign
// network namespace (setns belongs to a thread); it may be called from any.

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>

#include "core/result.h"

namespace livemv::proc {

struct SocketName {
  std::string name;       // as given to bind(2): absolute or relative
  uint32_t file_ino = 0;  // low 32 bits
};

// Adds to *sockets, by inode of the socket itself, those whose file is on
// sb_dev. proc_dir: a /proc/PID of the namespace to ask; -1: our own.
core::Status BoundSockets(int proc_dir, dev_t sb_dev,
                          std::map<uint64_t, SocketName>* sockets);

}  // namespace livemv::proc

#pragma once

// The fault points of one opcode: see dispatch.h. Thread contract: pure.

#include <cstdint>

#include "core/fault_points.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {

struct OpFaults {
  const char* begun;
  const char* executed;
  const char* before_reply;
};

// Names for an opcode; those of "other" for one that has none.
constexpr OpFaults FaultsOf(uint32_t opcode) {
#define LIVEMV_OP(op, name)                                                \
  case op:                                                                 \
    return {                                                               \
      "fuse.begun." name, "fuse.executed." name, "fuse.before_reply." name \
    }
  switch (opcode) {
    LIVEMV_OP(FUSE_LOOKUP, "lookup");
    LIVEMV_OP(FUSE_GETATTR, "getattr");
    LIVEMV_OP(wire::kOpStatx, "statx");
    LIVEMV_OP(FUSE_SETATTR, "setattr");
    LIVEMV_OP(FUSE_SYMLINK, "symlink");
    LIVEMV_OP(FUSE_MKNOD, "mknod");
    LIVEMV_OP(FUSE_MKDIR, "mkdir");
    LIVEMV_OP(FUSE_UNLINK, "unlink");
    LIVEMV_OP(FUSE_RMDIR, "rmdir");
    LIVEMV_OP(FUSE_RENAME, "rename");
    LIVEMV_OP(FUSE_RENAME2, "rename");
    LIVEMV_OP(FUSE_LINK, "link");
    LIVEMV_OP(FUSE_OPEN, "open");
    LIVEMV_OP(FUSE_OPENDIR, "opendir");
    LIVEMV_OP(FUSE_CREATE, "create");
    LIVEMV_OP(FUSE_READ, "read");
    LIVEMV_OP(FUSE_WRITE, "write");
    LIVEMV_OP(FUSE_FLUSH, "flush");
    LIVEMV_OP(FUSE_RELEASE, "release");
    LIVEMV_OP(FUSE_FSYNC, "fsync");
    LIVEMV_OP(FUSE_READDIR, "readdir");
    LIVEMV_OP(FUSE_READDIRPLUS, "readdir");
    LIVEMV_OP(FUSE_SETXATTR, "setxattr");
    LIVEMV_OP(FUSE_REMOVEXATTR, "removexattr");
    LIVEMV_OP(FUSE_FALLOCATE, "fallocate");
    default:
      return {"fuse.begun.other", "fuse.executed.other",
              "fuse.before_reply.other"};
  }
#undef LIVEMV_OP
}

inline core::Status PassBegun(uint32_t opcode) {
  if (auto all = core::FaultPoint("fuse.begun"); !all)
    return all;
  return core::FaultPoint(FaultsOf(opcode).begun);
}
inline core::Status PassExecuted(uint32_t opcode) {
  if (auto all = core::FaultPoint("fuse.executed"); !all)
    return all;
  return core::FaultPoint(FaultsOf(opcode).executed);
}
inline core::Status PassBeforeReply(uint32_t opcode) {
  if (auto all = core::FaultPoint("fuse.before_reply"); !all)
    return all;
  return core::FaultPoint(FaultsOf(opcode).before_reply);
}

}  // namespace livemv::fusefs

#pragma once

// Named places at which a test can make the program fail, die or wait.
//
// LIVEMV_FAULTS in the environment (read once, at the first use) or Arm() sets
// them: "name=action[@N][;name=action...]", action being
//   error:ERRNO   FaultPoint returns that error        (error:5)
//   kill          the process kills itself with SIGKILL
//   kill:ROLE     a process of the same migration is killed: "supervisor",
//                 "worker" or "reanchorer"
//   delay:MS      the thread sleeps
// and @N meaning: only at the Nth passage, counted from 1 (default: each).
// "once=DIR" among them: nothing acts before DIR exists, and each point once in
// all processes, whose claim is the file DIR/NAME; and what stands in the
// environment is for the processes that a migration has, not for the command.
// An unarmed program pays one branch a point.
//
// Thread contract: FaultPoint from any thread; Arm before threads start or
// from tests.

#include "core/result.h"

namespace livemv::core {

// OK unless armed. The error is kSystem with the armed errno.
Status FaultPoint(const char* name);
// Replaces what is armed; returns kInvalid for a spec that cannot be read.
Status ArmFaults(const std::string& spec);

}  // namespace livemv::core

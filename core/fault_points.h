#pragma once

// Named places at which a test can make the program fail, die or wait.
//
// LIVEMV_FAULTS in the environment (read once, at the first use) or Arm() sets
// them: "name=action[@N][;name=action...]", action being
//   error:ERRNO   FaultPoint returns that error        (error:5)
//   kill          the process kills itself with SIGKILL
//   delay:MS      the thread sleeps
// and @N meaning: only at the Nth passage, counted from 1 (default: each).
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

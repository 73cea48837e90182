#pragma once

// What the machine can do: the kernel's features, this process's privileges.
//
// Thread contract: one thread.

#include "migrator/daemon/preflight_findings.h"

namespace livemv::daemon {

// Needs nothing; says first of all if this is not root.
void CheckMachine(Plan* plan, Findings* findings);

// "6.1.0-18-amd64" -> 6, 1; false if it is no release.
bool ParseKernelRelease(const std::string& release, int* major, int* minor);

}  // namespace livemv::daemon

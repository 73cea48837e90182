#pragma once

// What the overlay answers from. Changed only while no request is in flight
// (FsCore::SetServing waits for that and holds new ones back meanwhile).

namespace livemv::fusefs {

enum class Serving {
  kSourceOnly,  // attaching, and after an abort's commit: the source, uncached
  kRedirect,    // rules 1 to 3
  kAborting,    // as kRedirect, while growth is brought back
  kTargetOnly,  // after the cutover's commit: the target, uncached (rule 7)
};

}  // namespace livemv::fusefs

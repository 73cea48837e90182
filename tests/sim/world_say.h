#pragma once

// World::Say, for the files that World is made of.

#include <iostream>

#include "tests/sim/world.h"

namespace livemv::sim {

template <class... T>
void World::Say(const T&... parts) {
  if (!trace_)
    return;
  std::cout << fibers_.steps() << " " << fibers_.NowNs() / 1'000'000 << "ms "
            << fibers_.CurrentName() << ": ";
  (std::cout << ... << parts) << std::endl;
}

}  // namespace livemv::sim

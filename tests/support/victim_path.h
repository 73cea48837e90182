#pragma once

// Where the build has put the victims (tests/victims): beside the test binary
// or beside its folder.
//
// Thread contract: any thread.

#include <filesystem>
#include <string>

namespace livemv {

inline std::string VictimPath(const std::string& name) {
  namespace fs = std::filesystem;
  fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  fs::path beside = here / "victims" / name;
  return fs::exists(beside) ? beside : here.parent_path() / "victims" / name;
}

}  // namespace livemv

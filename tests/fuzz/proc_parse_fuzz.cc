// Any bytes through every parser of /proc texts. Built on its own:
//   clang++-19 -std=c++23 -stdlib=libstdc++ -fsanitize=fuzzer,address -I. \
//     tests/fuzz/proc_parse_fuzz.cc migrator/proc/proc_parse.cc

#include <sys/sysmacros.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "migrator/proc/proc_parse.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace livemv::proc;  // NOLINT(google-build-using-namespace): brief
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ParseStat(text);
  ParseStatus(text);
  ParseMaps(text, 0);
  ParseMaps(text, makedev(8, 1));
  MapsShowAio(text);
  ParseMountInfo(text);
  ParseLocks(text);
  ParseFdInfo(text);
  ParseSwaps(text);
  ParseLoopBackingFile(text);
  ParseNfsdExports(text);
  ParseFilesystems(text);
  return 0;
}

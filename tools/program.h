#pragma once

namespace livemv::tools {

// Everything that main does: the command line, or one of livemv's own
// processes if it was started as such. Returns the exit code.
int Main(int argc, char** argv);

}  // namespace livemv::tools

#include "tools/program.h"

int main(int argc, char** argv) { return livemv::tools::Main(argc, argv); }

#pragma once

// Facts as one line of text each, for `livemv journal dump` and for people.
// Names are quoted, with escapes for everything that is not printable ASCII;
// nothing in a file name can forge a line.
//
// Thread contract: pure functions.

#include <string>
#include <string_view>

#include "core/state/facts.h"
#include "core/state/journal_reader.h"

namespace livemv::state {

std::string_view FactName(const Fact& fact);  // "local_end"
// "local_end id=0x1f end=4096"
std::string FactText(const Fact& fact);
// "12 @1024 local_end id=0x1f end=4096"
std::string RecordText(const JournalRecord& record);
// "end @2048: torn, ..." for the last line of a dump.
std::string TailText(const JournalTail& tail);
// A double-quoted string with \n, \t, \", \\ and \xNN.
std::string Quoted(std::string_view bytes);

}  // namespace livemv::state

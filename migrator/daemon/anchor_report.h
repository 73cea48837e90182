#pragma once

// What ties a process to a tree, for people and for programs.
//
// Thread contract: pure functions.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "migrator/proc/anchors.h"

namespace livemv::daemon {

// "movable", "stays", "blocks": for programs.
const char* VerdictWord(proc::Movability movability);
nlohmann::ordered_json ReasonsJson(const std::vector<proc::Reason>& reasons);
// kind, thread, number, path, details, verdict, reasons of each.
nlohmann::ordered_json AnchorsJson(const std::vector<proc::Anchor>& anchors);

// A line for each, and below it why it cannot be moved and the way out. Names
// are made printable.
std::string AnchorsText(pid_t pid, const std::vector<proc::Anchor>& anchors);

}  // namespace livemv::daemon

#pragma once

// A list of findings under construction.
//
// Thread contract: one thread.

#include <string>
#include <utility>
#include <vector>

#include "migrator/daemon/preflight.h"

namespace livemv::daemon {

class Findings {
 public:
  explicit Findings(std::vector<Finding>* list) : list_(list) {}

  void Block(std::string code, std::string what, std::string way_out) {
    list_->push_back({Severity::kBlocker, std::move(code), std::move(what),
                      std::move(way_out)});
  }
  void Warn(std::string code, std::string what, std::string way_out) {
    list_->push_back({Severity::kWarning, std::move(code), std::move(what),
                      std::move(way_out)});
  }
  void Note(std::string code, std::string what, std::string way_out = "") {
    list_->push_back({Severity::kNote, std::move(code), std::move(what),
                      std::move(way_out)});
  }
  bool Blocked() const {
    for (const Finding& finding : *list_) {
      if (finding.severity == Severity::kBlocker)
        return true;
    }
    return false;
  }

 private:
  std::vector<Finding>* list_;
};

// In the double quotes that messages use.
std::string Quote(const std::string& name);

}  // namespace livemv::daemon

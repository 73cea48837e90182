#pragma once

// What a user may accept to lose where the target cannot hold it, by the names
// that --allow-loss takes.
//
// Thread contract: values.

#include <string>
#include <string_view>

#include "core/result.h"

namespace livemv::core {

struct Losses {
  bool xattrs = false;  // extended attributes other than ACLs
  bool acls = false;    // POSIX ACLs
  bool owners = false;  // owners and groups that the target does not give
  bool times = false;   // times that the target cannot store
  // Data: on a soft mount a write that was acknowledged is lost when the
  // server is away for long (nfs(5)).
  bool soft = false;
  bool operator==(const Losses&) const = default;
};

// "xattr,acl"; "" is none. kInvalid for a word that is none of them.
Result<Losses> ParseLosses(std::string_view text);
std::string LossesText(const Losses& losses);

}  // namespace livemv::core

#pragma once

// Which kinds of extended attributes the target stores and whether it lets root
// give files away, as tried out at start. While the redirect is live the overlay
// refuses the rest, as the target will after the cutover: what cannot be moved
// would hold the migration up, or vanish at its end.
//
// Thread contract: a value.

#include <string_view>

namespace livemv::fusefs {

struct TargetHolds {
  bool user_xattrs = true;
  bool system_xattrs = true;  // trusted.* and security.*
  bool acls = true;           // system.posix_acl_*
  bool gives_owners = true;   // chown(2) to anybody

  bool Holds(std::string_view xattr) const {
    if (xattr.starts_with("user."))
      return user_xattrs;
    if (xattr.starts_with("system.posix_acl_"))
      return acls;
    // A label is the security policy's, not the user's: it is not copied.
    return system_xattrs || xattr == "security.selinux";
  }
};

}  // namespace livemv::fusefs

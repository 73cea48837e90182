#include "core/losses.h"

#include <algorithm>

namespace livemv::core {

namespace {

struct Name {
  std::string_view text;
  bool Losses::* which;
};

constexpr Name kNames[] = {{"xattr", &Losses::xattrs},
                           {"acl", &Losses::acls},
                           {"owner", &Losses::owners},
                           {"time", &Losses::times},
                           {"soft", &Losses::soft}};

}  // namespace

Result<Losses> ParseLosses(std::string_view text) {
  Losses losses;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    bool known = false;
    for (const Name& name : kNames) {
      if (word != name.text)
        continue;
      losses.*name.which = known = true;
    }
    if (!known)
      return Fail(ErrorCode::kInvalid,
                        "'" + std::string(word) +
                            "' is none of xattr, acl, owner, time, soft");
  }
  return losses;
}

std::string LossesText(const Losses& losses) {
  std::string text;
  for (const Name& name : kNames)
    if (losses.*name.which)
      text += (text.empty() ? "" : ",") + std::string(name.text);
  return text;
}

}  // namespace livemv::core

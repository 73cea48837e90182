#pragma once

// The safety mechanisms that the simulator can take away, one at a time, to
// see that it notices. Those of the byte rules are fusefs::SafetySwitches; the
// others are taken away in the simulator's own seams.

#include <string>
#include <vector>

#include "fusefs/byte_ledger.h"

namespace livemv::sim {

struct Switches {
  fusefs::SafetySwitches bytes;
  bool meta_hot = true;           // MetaHot facts reach the journal
  bool meta_hot_durable = true;   // and durably, before the change
  bool redo_records = true;       // Dirty facts reach the journal
  bool owed_facts = true;         // a host crash leaves owed comparisons
  bool intents = true;            // requests are repeated with their records
  bool boot_id = true;            // host crashes are told from kills
  bool recopy_hot = true;         // a successor withdraws hot chunks (V6)
  bool recovery_sync = true;      // recovery syncs the journal first (V7)
  bool barrier_sync = true;       // a barrier syncs the source
  bool burial_sync = true;        // nothing is destroyed before a source sync
  bool burial_in_use = true;      // nor while it is open
  bool orphans_kept = true;       // the supervisor keeps deleted inodes
  bool wait_predecessor = true;   // V5
  bool copy_on_bind = true;       // N6: what a record binds is copied
  bool scan_on_place = true;      // moved subtrees are scanned
  bool thorough = true;           // after a host crash attributes are compared
  bool full_scan = true;          // each worker compares the whole tree
};

struct Mechanism {
  const char* name;
  const char* what;   // one line for --help
  const char* world;  // the world that finds it soonest (see plan.h)
  bool fusefs::SafetySwitches::*byte_switch;
  bool Switches::*own_switch;
  // Schedules within which sim/mechanisms must see a violation; 0: not
  // asserted there, and `what` says why.
  int within;
  // Another mechanism that makes up for it, which is therefore taken away
  // with it; mechanisms.cc says why.
  const char* covered_by = nullptr;
};

const std::vector<Mechanism>& Mechanisms();
const Mechanism* FindMechanism(const std::string& name);
// Takes it away.
void TakeAway(const Mechanism& mechanism, Switches* on);
// Everything on but the mechanism and what makes up for it.
Switches Without(const Mechanism& mechanism);

}  // namespace livemv::sim

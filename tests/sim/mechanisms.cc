#include "tests/sim/mechanisms.h"

namespace livemv::sim {

using S = fusefs::SafetySwitches;
using W = Switches;

const std::vector<Mechanism>& Mechanisms() {
  static const std::vector<Mechanism> kAll = {
      {"hot-mark", "a chunk is marked hot before its first double write",
       "cut", &S::hot_mark, nullptr, 5000},
      {"hot-durable", "and durably", "cut", &S::hot_durable, nullptr, 5000},
      {"generation", "claims check the generation", "bytes", &S::generation,
       nullptr, 5000},
      // The copier takes no chunk that is being written. So a write that meets
      // a copy began after it, and its begin has moved the generation: its end
      // and its being in flight say nothing new.
      {"write-end-counted", "the generation counts ends of writes", "race",
       &S::write_end_counted, nullptr, 5000, "copies-wait"},
      {"in-flight-check", "claims check for writes in flight", "race",
       &S::in_flight_check, nullptr, 5000, "copies-wait"},
      {"copies-wait", "what is being written is not copied", "race",
       &S::copies_wait, nullptr, 5000, "write-end-counted"},
      {"withdraw-on-failure", "a failed double write withdraws the claim",
       "target", &S::withdraw_on_failure, nullptr, 5000},
      {"spare-remote", "the copier never writes remote bytes", "full",
       &S::spare_remote, nullptr, 5000},
      // Past the local end the map calls bytes the target's, and those are
      // spared already.
      {"clamp-to-local-end", "the copier stays below the local end", "race",
       &S::clamp_to_local_end, nullptr, 5000, "spare-remote"},
      {"claim-after-fsync", "a chunk is claimed after a target fsync", "cut",
       &S::claim_after_fsync, nullptr, 5000},
      {"writes-wait-for-cut", "writes past a pending cut wait", "bytes",
       &S::writes_wait_for_cut, nullptr, 5000},
      {"extends-wait-for-cut", "extending truncates wait too (R4)", "race",
       &S::extends_wait_for_cut, nullptr, 5000},
      {"cut-waits-for-copier", "a cut waits for the copier's write", "race",
       &S::cut_waits_for_copier, nullptr, 5000},
      {"cut-waits-for-given-up", "and for a given-up double write (V4)", "late",
       &S::cut_waits_for_given_up, nullptr, 5000},
      {"cut-durable-first", "a shrink's record is durable first (V1, V2)",
       "direct-cut", &S::cut_durable_first, nullptr, 5000},
      {"cut-synced", "a cut is synced on a weak target (R3)", "weak-cut",
       &S::cut_synced, nullptr, 5000},
      {"version-recheck", "a read looks at the version again (R1)", "race",
       &S::version_recheck, nullptr, 5000},
      {"unmark-rechecks", "unmarking checks the generation", "sync-cut",
       &S::unmark_rechecks, nullptr, 5000},
      {"unmark-after-sync", "unmarking follows both syncs", "cut",
       &S::unmark_after_sync, nullptr, 5000},
      {"back-synced", "copy-back syncs the source before the local end",
       "abort-cut", &S::back_synced, nullptr, 5000},
      {"back-generation", "copy-back checks the generation (R5)", "abort",
       &S::back_generation, nullptr, 5000},
      {"shrink-moves-back", "a shrink moves copy-back's generation (R5)",
       "abort-race", &S::shrink_moves_back, nullptr, 5000},
      {"fsync-source", "fsync syncs the source's part", "cut",
       &S::fsync_source, nullptr, 5000},
      {"fsync-target", "fsync syncs the object", "cut", &S::fsync_target,
       nullptr, 5000},
      {"fsync-journal", "fsync syncs the journal", "grow-cut",
       &S::fsync_journal, nullptr, 5000},
      // Growth whose pin a power cut took was never promised (fsync syncs the
      // journal), and the next pin cuts it away. That cut alone matters after
      // a power cut between binding and pin if the file shrinks before the
      // copier is back: too rare to be asked for.
      {"pin-durable", "the local end is durable before growth", "grow-cut",
       &S::pin_durable, nullptr, 5000, "leftovers-cut"},
      {"leftovers-cut", "a pin cuts what the object has past the local end",
       "grow-cut", &S::leftovers_cut, nullptr, 5000, "pin-durable"},
      {"remote-after-fsync", "bytes become remote after a target fsync (V9)",
       "full-cut", &S::remote_after_fsync, nullptr, 8000},
      {"failed-fsync-withdraws", "a failed target fsync withdraws (V8a)",
       "target", &S::failed_fsync_withdraws, nullptr, 5000},
      {"failed-fsync-moves", "and moves the generations (V8b)", "writeback",
       &S::failed_fsync_moves, nullptr, 8000},
      {"claim-hot-if-dirty", "a claim of undurable source bytes is hot (V3)",
       "cut", &S::claim_hot_if_dirty, nullptr, 5000},
      {"direct-alone", "a file becomes direct while nobody else has it open",
       "direct", &S::direct_alone, nullptr, 5000},
      {"direct-uncut", "and with no cut owed", "direct", &S::direct_uncut,
       nullptr, 5000},
      {"direct-recheck", "its end sees who opened and closed it meanwhile",
       "direct-abort", &S::direct_recheck, nullptr, 5000},
      {"direct-renumber", "numbers of a mount that is gone are forgotten",
       "direct-cut", &S::direct_renumber, nullptr, 5000},
      {"recopy-hot", "a successor copies hot chunks again (V6)", "die",
       nullptr, &W::recopy_hot, 5000},
      {"recovery-sync", "recovery makes the journal durable first (V7)",
       "cut", nullptr, &W::recovery_sync, 5000},
      {"wait-predecessor", "a successor claims nothing before the old worker "
       "is dead (V5)", "late", nullptr, &W::wait_predecessor, 5000},
      // Each worker compares all names, both ways, and after a host crash all
      // attributes. Marks and debts are for a worker that reads only what it
      // has to, so the walk is taken away with them; without marks and debts,
      // or without a walk that a barrier followed, nothing is lost.
      {"meta-hot", "a changed directory is marked hot (N2)", "hot-cut",
       nullptr, &W::meta_hot, 5000, "full-scan"},
      {"meta-hot-durable", "and durably (N2)", "hot-cut", nullptr,
       &W::meta_hot_durable, 5000, "full-scan"},
      {"redo-records", "changes of names are journaled first", "names",
       nullptr, &W::redo_records, 5000},
      {"owed-facts", "hot directories are compared after a host crash (N1, N3)",
       "hot-cut", nullptr, &W::owed_facts, 5000, "full-scan"},
      {"full-scan", "each worker compares the whole tree", "hot-cut", nullptr,
       &W::full_scan, 5000, "owed-facts"},
      {"intents", "repeated requests find their records (N7)", "names",
       nullptr, &W::intents, 5000},
      {"boot-id", "a host crash is told from a kill", "names-cut", nullptr,
       &W::boot_id, 5000},
      {"barrier-sync", "a barrier makes the source durable", "names-cut",
       nullptr, &W::barrier_sync, 5000},
      {"burial-sync", "nothing is destroyed before a source sync",
       "burial-cut", nullptr, &W::burial_sync, 5000},
      {"burial-in-use", "nothing is destroyed while it is open", "deleted",
       nullptr, &W::burial_in_use, 5000},
      {"orphans-kept", "the supervisor keeps deleted open files", "deleted",
       nullptr, &W::orphans_kept, 5000},
      {"copy-on-bind", "what a record binds is copied (N6)", "names", nullptr,
       &W::copy_on_bind, 5000},
      {"scan-on-place", "moved subtrees are scanned", "names", nullptr,
       &W::scan_on_place, 5000},
      {"thorough", "attributes are compared after a host crash", "names-cut",
       nullptr, &W::thorough, 5000},
  };
  return kAll;
}

const Mechanism* FindMechanism(const std::string& name) {
  for (const Mechanism& m : Mechanisms())
    if (m.name == name)
      return &m;
  return nullptr;
}

void TakeAway(const Mechanism& mechanism, Switches* on) {
  if (mechanism.byte_switch != nullptr)
    on->bytes.*mechanism.byte_switch = false;
  else
    on->*mechanism.own_switch = false;
}

Switches Without(const Mechanism& mechanism) {
  Switches on;
  TakeAway(mechanism, &on);
  if (mechanism.covered_by != nullptr)
    TakeAway(*FindMechanism(mechanism.covered_by), &on);
  return on;
}

}  // namespace livemv::sim

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
      {"write-end-counted", "the generation counts ends of writes", "bytes",
       &S::write_end_counted, nullptr, 20000},
      {"in-flight-check", "claims check for writes in flight", "bytes",
       &S::in_flight_check, nullptr, 20000},
      {"withdraw-on-failure", "a failed double write withdraws the claim",
       "target", &S::withdraw_on_failure, nullptr, 5000},
      {"clamp-to-local-end", "the copier stays below the local end", "bytes",
       &S::clamp_to_local_end, nullptr, 20000},
      {"spare-remote", "the copier never writes remote bytes", "full",
       &S::spare_remote, nullptr, 5000},
      {"claim-after-fsync", "a chunk is claimed after a target fsync", "cut",
       &S::claim_after_fsync, nullptr, 5000},
      {"writes-wait-for-cut", "writes past a pending cut wait", "bytes",
       &S::writes_wait_for_cut, nullptr, 5000},
      {"extends-wait-for-cut", "extending truncates wait too (R4)", "bytes",
       &S::extends_wait_for_cut, nullptr, 5000},
      {"cut-waits-for-copier", "a cut waits for the copier's write", "bytes",
       &S::cut_waits_for_copier, nullptr, 20000},
      {"cut-waits-for-given-up", "and for a given-up double write (V4)", "late",
       &S::cut_waits_for_given_up, nullptr, 5000},
      {"cut-durable-first", "a shrink's record is durable first (V1, V2)",
       "cut", &S::cut_durable_first, nullptr, 5000},
      {"cut-synced", "a cut is synced on a weak target (R3)", "cut",
       &S::cut_synced, nullptr, 20000},
      {"version-recheck", "a read looks at the version again (R1)", "bytes",
       &S::version_recheck, nullptr, 5000},
      {"unmark-rechecks", "unmarking checks the generation", "cut",
       &S::unmark_rechecks, nullptr, 20000},
      {"unmark-after-sync", "unmarking follows both syncs", "cut",
       &S::unmark_after_sync, nullptr, 5000},
      {"back-synced", "copy-back syncs the source before the local end",
       "abort-cut", &S::back_synced, nullptr, 5000},
      {"back-generation", "copy-back checks the generation (R5)", "abort",
       &S::back_generation, nullptr, 5000},
      {"shrink-moves-back", "a shrink moves copy-back's generation (R5)",
       "abort", &S::shrink_moves_back, nullptr, 20000},
      {"fsync-source", "fsync syncs the source's part", "cut",
       &S::fsync_source, nullptr, 5000},
      {"fsync-target", "fsync syncs the object", "cut", &S::fsync_target,
       nullptr, 5000},
      {"fsync-journal", "fsync syncs the journal", "cut", &S::fsync_journal,
       nullptr, 20000},
      {"pin-durable", "the local end is durable before growth", "cut",
       &S::pin_durable, nullptr, 20000},
      {"remote-after-fsync", "bytes become remote after a target fsync (V9)",
       "full-cut", &S::remote_after_fsync, nullptr, 5000},
      {"failed-fsync-withdraws", "a failed target fsync withdraws (V8a)",
       "target", &S::failed_fsync_withdraws, nullptr, 5000},
      {"failed-fsync-moves", "and moves the generations (V8b)", "target",
       &S::failed_fsync_moves, nullptr, 20000},
      {"claim-hot-if-dirty", "a claim of undurable source bytes is hot (V3)",
       "cut", &S::claim_hot_if_dirty, nullptr, 5000},
      {"recopy-hot", "a successor copies hot chunks again (V6)", "die",
       nullptr, &W::recopy_hot, 5000},
      {"recovery-sync", "recovery makes the journal durable first (V7)",
       "cut", nullptr, &W::recovery_sync, 5000},
      {"wait-predecessor", "a successor claims nothing before the old worker "
       "is dead (V5)", "late", nullptr, &W::wait_predecessor, 5000},
      {"meta-hot", "a changed directory is marked hot (N2)", "names-cut",
       nullptr, &W::meta_hot, 20000},
      {"meta-hot-durable", "and durably (N2)", "names-cut", nullptr,
       &W::meta_hot_durable, 20000},
      {"redo-records", "changes of names are journaled first", "names",
       nullptr, &W::redo_records, 5000},
      {"owed-facts", "hot directories are compared after a host crash (N1, N3)",
       "names-cut", nullptr, &W::owed_facts, 20000},
      {"intents", "repeated requests find their records (N7)", "names",
       nullptr, &W::intents, 5000},
      {"boot-id", "a host crash is told from a kill", "names-cut", nullptr,
       &W::boot_id, 5000},
      {"barrier-sync", "a barrier makes the source durable", "names-cut",
       nullptr, &W::barrier_sync, 5000},
      {"burial-sync", "nothing is destroyed before a source sync",
       "names-cut", nullptr, &W::burial_sync, 20000},
      {"burial-in-use", "nothing is destroyed while it is open", "names",
       nullptr, &W::burial_in_use, 20000},
      {"orphans-kept", "the supervisor keeps deleted open files", "names",
       nullptr, &W::orphans_kept, 20000},
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

Switches Without(const Mechanism& mechanism) {
  Switches on;
  if (mechanism.byte_switch != nullptr)
    on.bytes.*mechanism.byte_switch = false;
  else
    on.*mechanism.own_switch = false;
  return on;
}

}  // namespace livemv::sim

#include "migrator/daemon/phase_keeper.h"

#include "core/log.h"
#include "core/state/facts.h"

namespace livemv::daemon {

using core::Status;

Status PhaseKeeper::Advance(state::Event event, const std::string& reason) {
  std::lock_guard lock(mu_);
  ASSIGN_OR_RETURN(state::Phase next, state::Advance(phase_, event));
  TRY(journal_->AppendDurable(
      state::PhaseFact{static_cast<uint8_t>(next.state), reason}));
  LOG_INFO("{} -> {} ({}){}{}", state::StateName(phase_.state),
           state::StateName(next.state), state::EventName(event),
           reason.empty() ? "" : ": ", reason);
  phase_ = next;
  reason_ = reason;
  return {};
}

bool PhaseKeeper::Allows(state::Event event) {
  std::lock_guard lock(mu_);
  return state::Advance(phase_, event).has_value();
}

state::MigrationState PhaseKeeper::state() {
  std::lock_guard lock(mu_);
  return phase_.state;
}

std::string PhaseKeeper::reason() {
  std::lock_guard lock(mu_);
  return reason_;
}

bool PhaseKeeper::target_is_truth() {
  std::lock_guard lock(mu_);
  return target_is_truth_;
}

bool PhaseKeeper::source_is_truth() {
  std::lock_guard lock(mu_);
  return source_is_truth_;
}

Status PhaseKeeper::SetTargetTruth(bool target) {
  std::lock_guard lock(mu_);
  TRY(journal_->AppendDurable(state::TruthFact{target}));
  target_is_truth_ = target;
  return {};
}

Status PhaseKeeper::SetSourceTruth() {
  std::lock_guard lock(mu_);
  TRY(journal_->Append(state::OptionFact{kSourceTruthOption, "1"}));
  TRY(journal_->AppendDurable(state::TruthFact{false}));
  source_is_truth_ = true;
  return {};
}

}  // namespace livemv::daemon

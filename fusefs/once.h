#pragma once

// One request that must not run twice, on its way through the IntentTable.
// Made when the request is taken up, gone after its reply was written.
//
// Thread contract: one thread.

#include <utility>

#include "core/result.h"
#include "fusefs/dispatch_faults.h"
#include "fusefs/fuse_wire.h"
#include "fusefs/intents.h"
#include "fusefs/transport.h"

namespace livemv::fusefs {

class Once {
 public:
  // Of the request that this thread is answering.
  explicit Once(IntentTable* intents)
      : intents_(intents),
        opcode_(Transport::Request()->opcode),
        unique_(Transport::Request()->unique & ~wire::kResentBit) {
    if (Transport::IsResent())
      record_ = intents_->Find(unique_);
  }
  // The reply was written, or the kernel no longer wants one.
  ~Once() { intents_->Drop(unique_); }
  Once(const Once&) = delete;
  Once& operator=(const Once&) = delete;

  bool Fresh() const { return record_.phase == IntentTable::Phase::kNone; }
  // What was noted before the act, here or by a predecessor.
  uint64_t note() const { return record_.note; }
  void SetNote(uint64_t note) { record_.note = note; }  // while Fresh()
  uint64_t recorded_value() const { return record_.value; }
  void SetValue(uint64_t value) { record_.value = value; }

  // run: the act. repair: the act again when a predecessor may have done it
  // already or in part. answer: what to reply when it has. Each returns R, a
  // Result or Status.
  template <class R, class Run, class Repair, class Answer>
  R Do(Run run, Repair repair, Answer answer) {
    if (record_.phase == IntentTable::Phase::kCompleted) {
      if (record_.err != 0)
        return core::FailSys(record_.err, "as recorded");
      return answer();
    }
    bool again = !Fresh();
    TRY(intents_->Begin(unique_, opcode_, record_.note));
    TRY(PassBegun(opcode_));
    R result = again ? repair() : run();
    TRY(PassExecuted(opcode_));
    intents_->Complete(unique_, result ? 0 : result.error().Errno(),
                       record_.value);
    return result;
  }

 private:
  IntentTable* const intents_;
  const uint32_t opcode_;
  const uint64_t unique_;
  IntentTable::Record record_;
};

}  // namespace livemv::fusefs

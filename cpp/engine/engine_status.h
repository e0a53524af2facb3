// The state of an engine that its threads share: its failure, lost ranks, and whether its thread runs.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "base/error.h"

namespace longcat {

struct EngineStatus {
  mutable std::mutex mutex;  // guards the fields below, the scheduler and its sequences

  std::string failure;    // why the engine can make no more steps; empty: it can
  std::string lost_rank;  // why another rank is lost; empty: all ranks are there
  enum class Thread : uint8_t { none, running, ended } thread = Thread::none;  // the engine's own thread
  std::condition_variable thread_changed;
  bool stop = false;  // the thread is to end

  // Throws Error when the engine has failed. Call it with the mutex held.
  void require_sound() const {
    if (!failure.empty()) throw Error(str_cat("[engine] this engine has failed: ", failure));
  }
  // Throws Error when a rank is lost: results that a device computed since then may be wrong. Call it with the mutex
  // held.
  void require_ranks() const {
    if (!lost_rank.empty()) throw Error(lost_rank);
  }
};

}  // namespace longcat

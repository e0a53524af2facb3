// The failure of a job's ranks, with its reason. Every thread of this process may set it, check it or wait for it.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "comm/sockets.h"

namespace longcat {

// The reason why this process can wait for no other rank. Any thread sets it; it wakes all waiting threads at once.
class Failure {
 public:
  Failure();

  void set(const std::string& reason) noexcept;          // the first one stays
  std::string reason() const;                            // empty: none
  bool is_set() const { return failed_; }                // costs a load, for loops that poll
  void check() const;                                    // throws Error(reason) when there is one
  const Descriptor& readable() const { return event_; }  // from then on, for poll()

 private:
  mutable std::mutex mutex_;  // of reason_
  std::string reason_;
  std::atomic<bool> failed_ = false;
  Descriptor event_;
};

}  // namespace longcat

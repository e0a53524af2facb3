#include "comm/failure.h"

#include <sys/eventfd.h>

#include "base/error.h"

namespace longcat {

Failure::Failure() : event_(make_event()) {}

void Failure::set(const std::string& reason) noexcept {
  const std::lock_guard lock(mutex_);
  if (failed_) return;
  reason_ = reason;
  failed_ = true;
  signal(event_);
}

std::string Failure::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

void Failure::check() const {
  if (failed_) throw Error(reason());
}

}  // namespace longcat

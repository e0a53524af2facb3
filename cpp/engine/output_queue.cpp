#include "engine/output_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/error.h"

namespace longcat {

OutputQueue::~OutputQueue() {
  if (event_fd_ >= 0) ::close(event_fd_);
}

void OutputQueue::signal() {
  if (event_fd_ >= 0) ::eventfd_write(event_fd_, 1);
  ready_.notify_all();
}

void OutputQueue::push(StepOutput output) {
  const std::lock_guard lock(mutex_);
  outputs_.push_back(std::move(output));
  signal();
}

void OutputQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  signal();
}

void OutputQueue::wait(double timeout_ms) {
  std::unique_lock lock(mutex_);
  ready_.wait_for(lock, std::chrono::duration<double, std::milli>(timeout_ms),
                  [&] { return closed_ || !outputs_.empty(); });
}

std::vector<StepOutput> OutputQueue::take() {
  const std::lock_guard lock(mutex_);
  if (event_fd_ >= 0) {
    eventfd_t count;
    ::eventfd_read(event_fd_, &count);
  }
  return std::exchange(outputs_, {});
}

bool OutputQueue::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

bool OutputQueue::empty() const {
  const std::lock_guard lock(mutex_);
  return outputs_.empty();
}

int OutputQueue::event_fd() {
  const std::lock_guard lock(mutex_);
  if (event_fd_ < 0) {
    event_fd_ = ::eventfd(outputs_.empty() && !closed_ ? 0 : 1, EFD_NONBLOCK | EFD_CLOEXEC);
    if (event_fd_ < 0) throw Error("[engine] no file descriptor left for an event loop: raise ulimit -n");
  }
  return event_fd_;
}

}  // namespace longcat

// A queue of outputs between the engine's thread and the threads that wait for tokens.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "engine/step_output.h"

namespace longcat {

class OutputQueue {
 public:
  OutputQueue() = default;
  ~OutputQueue();
  OutputQueue(const OutputQueue&) = delete;
  OutputQueue& operator=(const OutputQueue&) = delete;

  void push(StepOutput output);
  void close();  // true: no more outputs will come

  // Waits until there are outputs, the queue is closed, or the time is up.
  void wait(double timeout_ms);
  std::vector<StepOutput> take();
  bool closed() const;
  bool empty() const;

  // A file descriptor for event loops, readable while the queue holds outputs. The queue owns it.
  int event_fd();

 private:
  void signal();

  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<StepOutput> outputs_;
  bool closed_ = false;
  int event_fd_ = -1;
};

}  // namespace longcat

// The Engine of a Python object. Any thread may use it, and close() runs once. A fork of the process cannot use it.
#pragma once

#include <unistd.h>

#include <atomic>
#include <shared_mutex>

#include "bindings/bindings.h"
#include "engine/engine.h"

namespace longcat {

class PyEngine {
 public:
  // progress: a callable of (bytes done, bytes in all), or None. communicator: of this rank; null when there is one
  // rank.
  PyEngine(const std::string& folder, const EngineOptions& options, const pybind11::object& progress,
           const PyCommunicator* communicator, Backend backend = {});
  ~PyEngine() { close(); }

  // Throws Error in a fork of the engine's process: the fork has no engine thread, and its locks may never be released.
  void check_process() const;

  // Runs `action(engine)` without the GIL. Throws Error after close(), which waits for running actions.
  template <class Action>
  auto with(Action&& action) {
    check_process();
    const GilRelease nogil;
    const std::shared_lock lock(mutex_);
    if (!engine_ || closing_) throw Error("[engine] this engine is closed");
    return action(*engine_);
  }

  pybind11::array_t<float> forward(const std::vector<int32_t>& token_ids, int64_t chunk_size);
  std::vector<StepOutput> step();
  void close();

 private:
  bool is_forked() const { return ::getpid() != pid_; }

  const pid_t pid_ = ::getpid();
  std::shared_mutex mutex_;
  std::atomic<bool> closing_ = false;
  std::unique_ptr<Engine> engine_;
};

}  // namespace longcat

// One pool of threads for the CPU backend.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace longcat {

// Threads this process may run at once: the affinity mask, not the machine.
int available_threads();

class ThreadPool {
 public:
  // `num_threads` in all, the caller included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) on disjoint ranges that cover [0, count), each at most `grain` long, from all threads;
  // returns when all are done. `body` must not throw. One caller at a time.
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    using Function = std::remove_reference_t<Body>;
    run(
        count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<Function*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);
  void run(int64_t count, int64_t grain, RangeFunction function, void* context);
  void work();
  void take_ranges();

  std::vector<std::thread> workers_;
  // The job of the current generation; published by the increment of generation_.
  RangeFunction function_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0, grain_ = 1;
  std::atomic<int64_t> next_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<int32_t> running_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace longcat

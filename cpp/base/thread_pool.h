// One pool of threads for the CPU backend.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace longcat {

// Threads this process may run at once: the affinity mask, not the machine.
int available_threads();

// Items a thread should take at once so that handing them out costs little: about 4 us of multiply-adds.
constexpr int64_t grain_for(int64_t multiply_adds_per_item) {
  constexpr int64_t kMinWork = 1 << 15;
  return std::max<int64_t>(1, kMinWork / std::max<int64_t>(1, multiply_adds_per_item));
}

// Work is handed out in ranges, and the caller takes part: it waits only for ranges that others have begun, so a worker
// that the operating system keeps from running (a busy machine) delays nobody.
class ThreadPool {
 public:
  // `num_threads` in all, the caller included. Throws Error when the system refuses that many.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) on disjoint ranges that cover [0, count), each at most `grain` long, from all threads;
  // returns when all are done. When a body throws, the first exception is rethrown here after all ranges have ended.
  // One caller at a time.
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
  void take_ranges(uint32_t generation);
  void stop();

  std::vector<std::thread> workers_;

  // (generation << 32) | next range. A range is taken by compare-and-swap of the whole word, so one that was read for
  // an older job can never be taken; between jobs the low half is kClosed and the job below may be written.
  static constexpr uint32_t kClosed = ~0u;
  std::atomic<uint64_t> state_{kClosed};
  std::atomic<RangeFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> count_{0}, grain_{1};
  std::atomic<uint32_t> num_ranges_{0};
  std::atomic<uint32_t> done_{0};        // ranges finished
  std::atomic<uint32_t> generation_{0};  // what idle workers sleep on
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr exception_;  // of the first body that threw; written by the thread that set failed_
};

}  // namespace longcat

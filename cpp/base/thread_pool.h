// The thread pool of the CPU backend.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace longcat {

// Number of items per range that makes handing them out cheap: about 4 us of multiply-adds.
constexpr int64_t grain_for(int64_t multiply_adds_per_item) {
  constexpr int64_t kMinWork = 1 << 15;
  return std::max<int64_t>(1, kMinWork / std::max<int64_t>(1, multiply_adds_per_item));
}

// Threads take ranges of the work, the caller included. Each has a span of adjacent ranges, which it takes in ascending
// order: so it reads adjacent memory. Then it takes those that are left in other spans. The caller waits only for
// ranges that have been started. On a busy machine, a worker that gets no core therefore delays no call.
class ThreadPool {
 public:
  // `num_threads` includes the caller. Throws Error when the system cannot start that many.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) from all threads on disjoint ranges of at most `grain` items that cover [0, count). With one
  // thread, a single call covers all. Returns when all ranges are done. When a body throws, the other ranges still run,
  // and then the first exception is rethrown here. Only one thread may call it at a time.
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
  void work(size_t thread);
  void take_ranges(uint32_t generation, size_t thread);
  bool take_range(uint32_t generation, size_t span);             // false: none is left
  uint32_t first_range(size_t span, uint32_t num_ranges) const;  // of the span
  void stop();

  // (generation << 32) | next range of a thread's span. A thread takes a range by compare-and-swap of the whole word,
  // so a range read for an older job can never be taken. Between jobs the low half is kClosed; only then are the job's
  // fields below written.
  static constexpr uint32_t kClosed = ~0u;
  struct alignas(64) Span {
    std::atomic<uint64_t> state{kClosed};
  };
  std::vector<Span> spans_;  // one a thread
  std::vector<std::thread> workers_;
  std::atomic<RangeFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> count_{0}, grain_{1};
  std::atomic<uint32_t> num_ranges_{0};
  std::atomic<uint32_t> done_{0};        // ranges finished
  std::atomic<uint32_t> generation_{0};  // idle workers wait for it to change
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr exception_;  // exception of the first body that threw; written by the thread that set failed_
};

}  // namespace longcat

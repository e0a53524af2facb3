#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>

namespace longcat {

namespace {

// A step has about a hundred parallel loops a few microseconds apart: spin that long before sleeping in the kernel.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int available_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::take_ranges() {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    function_(context_, begin, std::min(begin + grain_, count_));
  }
}

void ThreadPool::run(int64_t count, int64_t grain, RangeFunction function, void* context) {
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) function(context, begin, std::min(begin + grain, count));
    return;
  }
  function_ = function;
  context_ = context;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  running_.store(static_cast<int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  take_ranges();
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0;) {
    if (++spin < kSpins) {
      pause();
    } else if (const int32_t left = running_.load(std::memory_order_acquire); left != 0) {
      running_.wait(left, std::memory_order_acquire);
    }
  }
}

void ThreadPool::work() {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; generation_.load(std::memory_order_acquire) == seen;) {
      if (++spin < kSpins) {
        pause();
      } else {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    take_ranges();
    if (running_.fetch_sub(1, std::memory_order_release) == 1) running_.notify_one();
  }
}

}  // namespace longcat

#include "base/thread_pool.h"

#include <utility>

#include "base/error.h"

namespace longcat {

namespace {

// A step has about a hundred parallel loops, a few microseconds apart. Threads spin that long before they sleep.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins, then sleeps on the atomic, until `ready(value)`; returns the value.
template <class Ready>
uint32_t wait_until(const std::atomic<uint32_t>& atomic, Ready&& ready) {
  for (int spin = 0;; ++spin) {
    const uint32_t value = atomic.load(std::memory_order_acquire);
    if (ready(value)) return value;
    if (spin < kSpins) {
      pause();
    } else {
      atomic.wait(value, std::memory_order_acquire);
    }
  }
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : spans_(static_cast<size_t>(std::max(1, num_threads))) {
  try {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { work(static_cast<size_t>(i)); });
  } catch (const std::exception& error) {
    const size_t started = workers_.size() + 1;
    stop();
    throw Error(str_cat("[cpu] cannot start ", num_threads, " threads, only ", started, " (", error.what(),
                        "): lower num_threads"));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::take_ranges(uint32_t generation, size_t thread) {
  for (size_t i = 0; i < spans_.size(); ++i) {
    const size_t span = (thread + i) % spans_.size();
    while (take_range(generation, span)) {
    }
  }
}

bool ThreadPool::take_range(uint32_t generation, size_t span) {
  std::atomic<uint64_t>& next = spans_[span].state;
  uint64_t state = next.load();
  const uint32_t range = static_cast<uint32_t>(state), num_ranges = num_ranges_.load();
  if (state >> 32 != generation || range >= first_range(span + 1, num_ranges)) return false;
  const RangeFunction function = function_.load();
  void* context = context_.load();
  const int64_t count = count_.load(), grain = grain_.load();
  if (!next.compare_exchange_weak(state, state + 1)) return true;
  const int64_t begin = range * grain;
  try {
    function(context, begin, std::min(begin + grain, count));
  } catch (...) {  // run() rethrows it
    if (!failed_.exchange(true)) exception_ = std::current_exception();
  }
  if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_ranges) done_.notify_one();
  return true;
}

uint32_t ThreadPool::first_range(size_t span, uint32_t num_ranges) const {
  return static_cast<uint32_t>(uint64_t{num_ranges} * span / spans_.size());
}

void ThreadPool::run(int64_t count, int64_t grain, RangeFunction function, void* context) {
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) return function(context, 0, count);
  const uint32_t generation = generation_.load() + 1;
  const uint32_t num_ranges = static_cast<uint32_t>((count + grain - 1) / grain);
  for (Span& span : spans_) span.state = uint64_t{generation} << 32 | kClosed;
  function_ = function;
  context_ = context;
  count_ = count;
  grain_ = grain;
  num_ranges_ = num_ranges;
  done_ = 0;
  for (size_t i = 0; i < spans_.size(); ++i) spans_[i].state = uint64_t{generation} << 32 | first_range(i, num_ranges);
  generation_ = generation;
  generation_.notify_all();
  take_ranges(generation, 0);
  wait_until(done_, [&](uint32_t done) { return done == num_ranges; });
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(exception_, nullptr));
}

void ThreadPool::work(size_t thread) {
  for (uint32_t seen = 0; !stop_; take_ranges(seen, thread))
    seen = wait_until(generation_, [&](uint32_t generation) { return generation != seen; });
}

}  // namespace longcat

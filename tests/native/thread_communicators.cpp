// Ranks as threads of one process: each shows the others the address of its data, and they copy from there.
#include "tests/native/thread_communicators.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "tests/native/native.h"

namespace longcat {

namespace {

// The failure that all groups of a job share; empty: none.
struct Job {
  std::mutex mutex;
  std::string failure;

  void check() {
    const std::lock_guard lock(mutex);
    if (!failure.empty()) throw Error(failure);
  }
};

class Group {
 public:
  Group(std::shared_ptr<Job> job, int size) : job_(std::move(job)), shown_(static_cast<size_t>(size)), size_(size) {}

  const std::shared_ptr<Job>& job() const { return job_; }
  int size() const { return size_; }

  // Waits until all ranks have come, calls read(shown) with the pointers of all ranks, and returns when all have read.
  template <class Read>
  void exchange(int rank, const void* mine, Read&& read) {
    shown_[static_cast<size_t>(rank)] = mine;
    meet();
    read(shown_);
    meet();
  }

 private:
  void meet() {
    constexpr auto kCheck = std::chrono::milliseconds(20);  // how often a waiting rank looks for a failure
    std::unique_lock lock(mutex_);
    job_->check();
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      return met_.notify_all();
    }
    for (const int64_t round = round_; round_ == round;)
      if (met_.wait_for(lock, kCheck) == std::cv_status::timeout && round_ == round) job_->check();
  }

  const std::shared_ptr<Job> job_;
  std::mutex mutex_;
  std::condition_variable met_;
  int arrived_ = 0;
  int64_t round_ = 0;
  std::vector<const void*> shown_;  // one for each rank
  const int size_;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  std::unique_ptr<Communicator> split(int color) override {
    struct SplitRequest {
      int color;
      std::shared_ptr<Group> group;
    } mine{color, nullptr};
    int num_alike = 0, new_rank = 0, first = -1;
    group_->exchange(rank_, &mine, [&](const std::vector<const void*>& requests) {
      for (int r = 0; r < size(); ++r) {
        if (static_cast<const SplitRequest*>(requests[static_cast<size_t>(r)])->color != color) continue;
        if (first < 0) first = r;
        new_rank += r < rank_ ? 1 : 0;
        ++num_alike;
      }
    });
    if (first == rank_) mine.group = std::make_shared<Group>(group_->job(), num_alike);
    group_->exchange(rank_, &mine, [&](const std::vector<const void*>& requests) {
      if (first != rank_) mine.group = static_cast<const SplitRequest*>(requests[static_cast<size_t>(first)])->group;
    });
    return std::make_unique<ThreadCommunicator>(mine.group, new_rank);
  }

  void all_gather(Tensor out, Tensor x) override {
    check_blocks(out, x.numel() * size(), x);
    group_->exchange(rank_, x.raw(), [&](const std::vector<const void*>& all) {
      for (int r = 0; r < size(); ++r) copy_block(out, r, all[static_cast<size_t>(r)], 0, x.num_bytes());
    });
  }

  void all_to_all(Tensor out, Tensor x) override {
    check_blocks(out, x.numel(), x);
    const int64_t bytes = x.num_bytes() / size();
    group_->exchange(rank_, x.raw(), [&](const std::vector<const void*>& all) {
      for (int r = 0; r < size(); ++r) copy_block(out, r, all[static_cast<size_t>(r)], rank_, bytes);
    });
  }

  void broadcast(Tensor x, int root) override {
    LC_CHECK(x.is_contiguous());
    group_->exchange(rank_, x.raw(), [&](const std::vector<const void*>& all) {
      if (rank_ != root) copy_block(x, 0, all[static_cast<size_t>(root)], 0, x.num_bytes());
    });
  }

  void barrier() override {
    group_->exchange(rank_, nullptr, [](const std::vector<const void*>&) {});
  }

  void abort(const std::string& reason) noexcept override {
    const std::lock_guard lock(group_->job()->mutex);
    if (group_->job()->failure.empty()) group_->job()->failure = reason;
  }
  std::string failure() const override {
    const std::lock_guard lock(group_->job()->mutex);
    return group_->job()->failure;
  }

 private:
  void check_blocks(Tensor out, int64_t count, Tensor x) const {
    LC_CHECK(out.is_contiguous() && x.is_contiguous() && out.numel() == count && out.dtype() == x.dtype(),
             out.shape_string(), " from ", x.shape_string(), " on ", size(), " ranks");
  }

  static void copy_block(Tensor out, int64_t to, const void* x, int64_t from, int64_t bytes) {
    std::memcpy(out.data<std::byte>() + to * bytes, static_cast<const std::byte*>(x) + from * bytes,
                static_cast<size_t>(bytes));
  }

  std::shared_ptr<Group> group_;
  int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size) {
  const auto group = std::make_shared<Group>(std::make_shared<Job>(), size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank) ranks.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  return ranks;
}

void register_thread_communicators(pybind11::module_& testing) {
  testing.def("thread_communicators", [](int size) {
    std::vector<PyCommunicator> all;
    for (auto& ranks : make_thread_communicators(size)) all.push_back({std::move(ranks)});
    return all;
  });
}

}  // namespace longcat

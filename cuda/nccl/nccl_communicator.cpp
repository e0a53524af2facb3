// Ranks on GPUs. NCCL moves the bytes on the device's stream, so that a recorded graph includes the collectives. A
// kernel of ours adds the partial sums. Small sums go over peer memory where the ranks have it (peer_sums.h), which is
// one kernel and no exchange of NCCL's.
//
// NCCL allows one thread to use a communicator, while another may end its waits (ncclCommAbort). After that, no thread
// may use it. So every use holds a lock. abort() first forbids new uses, then takes the lock. A call that sets up
// connections may itself wait for lost ranks; after kUse, abort() therefore proceeds without the lock.
#include "cuda/nccl/nccl_communicator.h"

#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>

#include "base/buffer.h"
#include "cuda/kernels/rank_sum.h"
#include "cuda/nccl/peer_sums.h"

namespace longcat {

namespace {

// An all-reduce up to this size takes one exchange: every rank receives all parts and sums them. A larger one takes
// two. A second exchange costs about 20 us, in which NVLink moves megabytes. Processes on a host move less in that
// time, so the limit in communicator.cpp is lower.
constexpr int64_t kOneExchangeBytes = 256 << 10;

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclApi& api, std::unique_ptr<Communicator> host, GpuDevice& device, int64_t max_bytes)
      : api_(api), host_(std::move(host)), device_(device), max_bytes_(max_bytes) {
    // Recorded graphs keep these addresses. sent_ holds outgoing blocks, received_ incoming ones.
    const int64_t padded = (max_bytes / size() + kAlignment) / kAlignment * kAlignment * size();
    scratch_bytes_ = std::max(std::min(max_bytes, kOneExchangeBytes) * size(), padded);
    sent_ = Buffer(device, scratch_bytes_);
    received_ = Buffer(device, scratch_bytes_);
    NcclUniqueId id{};
    if (rank() == 0) check(api_.get_unique_id(&id), "ncclGetUniqueId");
    host_->broadcast(Tensor(id.bytes, DType::u8, {static_cast<int64_t>(sizeof(id.bytes))}), 0);
    host_->barrier();  // can be aborted, while NCCL would wait for all ranks for ever
    peers_ = PeerSums::connect(*host_, device_, max_bytes, no_peers_);
    check(api_.comm_init_rank(&comm_, size(), id, rank()), "ncclCommInitRank");
  }
  ~NcclCommunicator() override {
    peers_.reset();
    const std::lock_guard lock(use_);
    if (aborted_) return;
    if (std::uncaught_exceptions() > 0 || !host_->failure().empty()) {
      api_.comm_abort(comm_);  // ncclCommDestroy would wait for the other ranks
    } else {
      api_.comm_destroy(comm_);
    }
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  std::unique_ptr<Communicator> split(int color) override {
    return std::make_unique<NcclCommunicator>(api_, host_->split(color), device_, max_bytes_);
  }

  void all_gather(Tensor out, Tensor x) override {
    LC_CHECK(out.is_contiguous() && x.is_contiguous() && out.num_bytes() == x.num_bytes() * size());
    const auto lock = use();
    check(api_.all_gather(x.raw(), out.raw(), static_cast<size_t>(x.num_bytes()), NcclApi::kUint8, comm_, stream()),
          "ncclAllGather");
  }

  void all_to_all(Tensor out, Tensor x) override {
    LC_CHECK(out.is_contiguous() && x.is_contiguous() && out.num_bytes() == x.num_bytes());
    exchange(out.data<std::byte>(), x.data<std::byte>(), x.num_bytes() / size());
  }

  void broadcast(Tensor x, int root) override {
    LC_CHECK(x.is_contiguous());
    const auto lock = use();
    check(api_.broadcast(x.raw(), x.raw(), static_cast<size_t>(x.num_bytes()), NcclApi::kUint8, root, comm_, stream()),
          "ncclBroadcast");
  }

  void barrier() override { host_->barrier(); }

  std::string way_of_sums() const override {
    return peers_ ? str_cat("sums up to ", peers_->most_bytes() >> 10, " KiB over peer memory, larger ones by NCCL")
                  : str_cat("sums by NCCL (not over peer memory: ", no_peers_, ")");
  }

  void all_reduce(Tensor x) override {
    LC_CHECK(x.is_contiguous());
    if (size() == 1) return;
    if (peers_ && peers_->takes(x)) {
      LC_CHECK(!device_.in_branch());
      require_ranks();
      peers_->all_reduce(x);
      return require_ranks();  // an emulated device has waited for them
    }
    if (x.dtype() == DType::i32) {
      const size_t count = static_cast<size_t>(x.numel());
      const auto lock = use();
      return check(api_.all_reduce(x.raw(), x.raw(), count, NcclApi::kInt32, NcclApi::kSum, comm_, stream()),
                   "ncclAllReduce");
    }
    const int64_t count = x.numel();
    if (x.num_bytes() <= kOneExchangeBytes) {
      const Tensor all = scratch(received_, x.dtype(), count * size());
      all_gather(all, x);
      return gpu::sum_blocks(device_, x, all, size());
    }
    // the rest of the last block is arbitrary and does not reach x
    const int64_t block = (count + size() - 1) / size();
    const Tensor sent = scratch(sent_, x.dtype(), block * size()),
                 received = scratch(received_, x.dtype(), block * size());
    device_.copy(sent.raw(), x.raw(), x.num_bytes());
    all_to_all(received, sent);
    gpu::sum_blocks(device_, received.first(block), received, size());
    all_gather(sent, received.first(block));
    device_.copy(x.raw(), sent.raw(), x.num_bytes());
  }

  void reduce_scatter(Tensor out, Tensor x) override {
    LC_CHECK(out.numel() * size() == x.numel());
    const Tensor all = scratch(received_, x.dtype(), x.numel());
    all_to_all(all, x);
    gpu::sum_blocks(device_, out, all, size());
  }

  void launch_recorded(const std::function<void()>& launch) override {
    const auto lock = use();
    launch();
  }

  void abort(const std::string& reason) noexcept override {
    host_->abort(reason);
    if (aborting_.exchange(true)) return;
    if (peers_) peers_->stop();
    const std::unique_lock lock(use_, kUse);
    if (!aborted_.exchange(true)) api_.comm_abort(comm_);  // ends kernels that wait for other ranks
  }
  std::string failure() const override { return host_->failure(); }

 private:
  static constexpr int64_t kAlignment = 256;
  static constexpr std::chrono::seconds kUse{1};  // far longer than a use that does not wait for other ranks

  // While the lock is held, abort() waits. The lock is recursive: an all-reduce has several uses, and so has an
  // emulated launch.
  std::unique_lock<std::recursive_timed_mutex> use() {
    std::unique_lock lock(use_);
    require_ranks();
    return lock;
  }

  // Throws Error when they have failed.
  void require_ranks() const {
    if (const std::string reason = host_->failure(); !reason.empty()) throw Error(reason);
    if (aborting_) throw Error(str_cat("[nccl] rank ", rank(), ": the communicator was aborted"));
  }

  void exchange(std::byte* out, const std::byte* x, int64_t block) {
    const auto lock = use();
    const size_t bytes = static_cast<size_t>(block);
    check(api_.group_start(), "ncclGroupStart");
    int result = 0;
    for (int peer = 0; peer < size() && result == 0; ++peer) {
      result = api_.send(x + peer * block, bytes, NcclApi::kUint8, peer, comm_, stream());
      if (result == 0) result = api_.recv(out + peer * block, bytes, NcclApi::kUint8, peer, comm_, stream());
    }
    const int end = api_.group_end();  // always, or this thread's next calls would join the group
    check(result, "ncclSend or ncclRecv");
    check(end, "ncclGroupEnd");
  }

  Tensor scratch(const Buffer& buffer, DType dtype, int64_t count) const {
    LC_CHECK(count * size_of(dtype) <= scratch_bytes_, "a sum of ", count, " values on ", size(), " ranks");
    return buffer.tensor(dtype, {count});
  }

  // Collectives stay on the main stream, because all ranks must start them in the same order.
  NcclApi::Stream stream() const {
    LC_CHECK(!device_.in_branch());
    device_.end_overlap();
    return device_.stream();
  }

  void check(int result, const char* what) const {
    if (result == 0) return;
    const std::string reason = host_->failure();
    throw Error(reason.empty() ? str_cat("[nccl] rank ", rank(), ": ", what, ": ", api_.get_error_string(result))
                               : reason);
  }

  const NcclApi& api_;
  std::unique_ptr<Communicator> host_;
  GpuDevice& device_;
  const int64_t max_bytes_;
  int64_t scratch_bytes_ = 0;
  NcclApi::Comm comm_ = nullptr;
  Buffer sent_, received_;
  std::unique_ptr<PeerSums> peers_;  // null: NCCL sums everything
  std::string no_peers_;             // why
  std::recursive_timed_mutex use_;
  std::atomic<bool> aborting_ = false;  // no new use may begin
  std::atomic<bool> aborted_ = false;   // comm_ no longer exists
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const NcclApi& api, std::unique_ptr<Communicator> host,
                                                     GpuDevice& device, int64_t max_bytes) {
  return std::make_unique<NcclCommunicator>(api, std::move(host), device, max_bytes);
}

}  // namespace longcat

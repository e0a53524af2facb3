#include "cuda/nccl/peer_sums.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "cuda/kernels/rank_sum.h"

namespace longcat {

namespace {

constexpr int64_t kFlagBytes = gpu::kMostPeers * gpu::kPeerBlocks * 4;

std::string wanted_way() {
  const char* text = std::getenv("LONGCAT_ALL_REDUCE");
  const std::string way = text && *text ? text : "auto";
  if (way != "auto" && way != "nccl" && way != "peers")
    throw std::invalid_argument(
        str_cat("[nccl] found LONGCAT_ALL_REDUCE=\"", way, "\"; expected \"auto\", \"nccl\" or \"peers\""));
  return way;
}

// What each rank hands in, by rank.
template <class T>
std::vector<T> gathered(Communicator& host, T own) {
  std::vector<T> all(static_cast<size_t>(host.size()));
  const int64_t bytes = sizeof(T);
  host.all_gather(Tensor(all.data(), DType::u8, {host.size() * bytes}), Tensor(&own, DType::u8, {bytes}));
  return all;
}

// The first refusal of all ranks; empty: none refuses.
std::string first_refusal(Communicator& host, const std::string& own) {
  struct Text {
    char value[256] = {};
  } mine;
  own.copy(mine.value, sizeof(mine.value) - 1);
  for (const Text& text : gathered(host, mine))
    if (text.value[0]) return text.value;
  return {};
}

// Why a job like this has no sums over peers; empty: it may have.
std::string refusal(const std::string& way, const Communicator& host, const GpuDevice& device) {
  if (way == "nccl") return "LONGCAT_ALL_REDUCE=nccl";
  if (host.size() > gpu::kMostPeers) return str_cat(host.size(), " ranks are more than ", gpu::kMostPeers);
  if (!device.reads_registered_memory()) return "the GPU does not read pinned memory by the host's pointers";
  return {};
}

}  // namespace

std::unique_ptr<PeerSums> PeerSums::connect(Communicator& host, GpuDevice& device, int64_t max_bytes,
                                            std::string& refused) {
  const std::string way = wanted_way();
  std::unique_ptr<PeerSums> sums;
  const auto all_can = [&](const auto& step) {
    std::string own;
    try {
      own = step();
    } catch (const Error& error) {
      own = error.what();
    }
    refused = first_refusal(host, own);
    return refused.empty();
  };
  if (all_can([&] { return refusal(way, host, device); }) && all_can([&] {
        constexpr int64_t kBlock = gpu::kPeerBlockBytes;
        sums.reset(new PeerSums(host, device, std::min((max_bytes + kBlock - 1) / kBlock * kBlock, kMostBytes)));
        return std::string();
      }) &&
      all_can([&] {
        sums->map_all();
        return std::string();
      }))
    return sums;
  sums.reset();
  if (way == "peers") throw Error(str_cat("[nccl] LONGCAT_ALL_REDUCE=peers cannot be met: ", refused));
  return nullptr;
}

PeerSums::PeerSums(Communicator& host, GpuDevice& device, int64_t slot_bytes)
    : host_(host), device_(device), epochs_(device, gpu::kPeerBlocks * 4), stop_(device, 4) {
  memory_ = {.rank = host.rank(),
             .ranks = host.size(),
             .slot_bytes = slot_bytes,
             .epochs = static_cast<uint32_t*>(epochs_.data()),
             .stop = static_cast<const uint32_t*>(stop_.data()),
             .mailboxes = {}};
  *static_cast<uint32_t*>(stop_.data()) = 0;
  own_ = device.share_memory(kFlagBytes + 2 * host.size() * slot_bytes, handle_);
}

void PeerSums::map_all() {
  offered_ = true;
  const std::vector<SharedMemoryHandle> handles = gathered(host_, handle_);
  for (int rank = 0; rank < host_.size(); ++rank) {
    const SharedMemoryHandle& of_rank = handles[static_cast<size_t>(rank)];
    if (std::strncmp(of_rank.machine, handle_.machine, sizeof(handle_.machine)) != 0)
      throw Error("ranks are on several machines");
    if (rank != host_.rank()) mapped_[rank] = device_.map_shared(of_rank);
    memory_.mailboxes[rank] = mailbox_at(rank == host_.rank() ? own_ : mapped_[rank]);
  }
}

// A rank's memory may be freed when no other has it mapped. What they have written to it has arrived: the last sum has
// waited for it. After a failure no rank knows when that is, so the memory stays until the process ends.
PeerSums::~PeerSums() {
  const bool failed = std::uncaught_exceptions() > 0 || !host_.failure().empty();
  if (failed) stop();
  for (void* const memory : mapped_)
    if (memory) device_.unmap_shared(memory);
  if (offered_ && !failed) try {
      host_.barrier();
    } catch (const Error&) {  // a rank was lost: none will use the memory
    }
  if (own_ && !(offered_ && failed)) device_.free_shared(own_);
}

gpu::PeerMailbox PeerSums::mailbox_at(void* shared) const {
  return {.flags = static_cast<uint32_t*>(shared), .slots = static_cast<std::byte*>(shared) + kFlagBytes};
}

// The same on all ranks: it does not depend on where x lies.
bool PeerSums::takes(Tensor x) const { return x.num_bytes() <= most_bytes(); }

void PeerSums::all_reduce(Tensor x) {
  device_.wait_for_ranks([this] { return host_.failure().empty(); });
  gpu::sum_over_peers(device_, x, memory_);
  device_.wait_for_ranks({});
}

void PeerSums::stop() noexcept {
  std::atomic_ref(*static_cast<uint32_t*>(stop_.data())).store(1, std::memory_order_release);
}

}  // namespace longcat

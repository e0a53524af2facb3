// Sums of small tensors over the ranks of one machine, whose kernels write to each other's memory
// (cuda/kernels/peer_sum.h). NCCL serves everything else.
#pragma once

#include <memory>
#include <string>

#include "base/buffer.h"
#include "comm/communicator.h"
#include "cuda/device/gpu_device.h"
#include "cuda/kernels/peer_sum.h"

namespace longcat {

class PeerSums {
 public:
  // [bytes] A larger sum takes NCCL: each rank would write more than NCCL's two exchanges move.
  static constexpr int64_t kMostBytes = gpu::kPeerBlocks * gpu::kPeerBlockBytes;

  // Maps the ranks' memory. Returns null where that is refused, and why in `refused`: the same on all ranks. max_bytes:
  // of the largest sum. All ranks call it. `host` and `device` must outlive the result.
  // LONGCAT_ALL_REDUCE=nccl refuses. With LONGCAT_ALL_REDUCE=peers a refusal throws Error.
  static std::unique_ptr<PeerSums> connect(Communicator& host, GpuDevice& device, int64_t max_bytes,
                                           std::string& refused);
  ~PeerSums();  // waits for all ranks, unless one has failed
  PeerSums(const PeerSums&) = delete;
  PeerSums& operator=(const PeerSums&) = delete;

  int64_t most_bytes() const { return memory_.slot_bytes; }
  bool takes(Tensor x) const;
  // x: f32, bf16 or i32. x = the sum of all x, in ascending rank: floats in fp32, rounded once.
  void all_reduce(Tensor x);
  // From any thread: kernels that wait for other ranks end, now and later.
  void stop() noexcept;

 private:
  PeerSums(Communicator& host, GpuDevice& device, int64_t slot_bytes);
  void map_all();  // throws Error
  gpu::PeerMailbox mailbox_at(void* shared) const;

  Communicator& host_;
  GpuDevice& device_;
  Buffer epochs_;    // [kPeerBlocks] u32
  HostBuffer stop_;  // u32
  SharedMemoryHandle handle_{};
  void* own_ = nullptr;                 // flags, then slots
  void* mapped_[gpu::kMostPeers] = {};  // of the other ranks
  bool offered_ = false;                // the other ranks may have mapped own_
  gpu::PeerMemory memory_{};
};

}  // namespace longcat

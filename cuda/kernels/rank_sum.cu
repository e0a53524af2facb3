// Sums of blocks are bound by the bytes of all blocks. A thread takes an element; adjacent threads take adjacent ones.
#include "cuda/kernels/block.h"
#include "cuda/kernels/rank_sum.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat::gpu {

namespace {

constexpr int64_t kElementsOfABlock = 1024;

struct SumBlocks {
  static constexpr int kThreads = 256;
  View out, blocks;  // [count]; [num_blocks, count]
  int64_t count, num_blocks;

  LC_HD void operator()(const Block& block) const {
    const int64_t begin = block.index * kElementsOfABlock;
    const int64_t left = count - begin;
    block.for_each(left < kElementsOfABlock ? left : kElementsOfABlock, [&](int64_t i) {
      float sum = blocks.get(begin + i);
      for (int64_t b = 1; b < num_blocks; ++b) sum += blocks.get(b * count + begin + i);
      out.set(begin + i, sum);
    });
  }
};

template <DType kType>
void launch_peers(GpuDevice& device, Tensor x, const PeerMemory& peers) {
  simt::launch(device, (x.num_bytes() + kPeerBlockBytes - 1) / kPeerBlockBytes,
               PeerSum<kType>{.x = x.data<std::byte>(),
                              .count = x.numel(),
                              .is_aligned = reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0,
                              .peers = peers});
}

}  // namespace

void sum_blocks(GpuDevice& device, Tensor out, Tensor blocks, int64_t num_blocks) {
  const int64_t count = blocks.numel() / num_blocks;
  launch(device, (count + kElementsOfABlock - 1) / kElementsOfABlock, 0,
         SumBlocks{.out = View(out), .blocks = View(blocks), .count = count, .num_blocks = num_blocks});
}

void sum_over_peers(GpuDevice& device, Tensor x, const PeerMemory& peers) {
  LC_CHECK(x.is_contiguous() && x.num_bytes() <= peers.slot_bytes);
  const auto launch_of = x.dtype() == DType::bf16  ? launch_peers<DType::bf16>
                         : x.dtype() == DType::i32 ? launch_peers<DType::i32>
                                                   : launch_peers<DType::f32>;
  launch_of(device, x, peers);
}

}  // namespace longcat::gpu

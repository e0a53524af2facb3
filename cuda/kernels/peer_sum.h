// The sum of a tensor over the ranks of one machine, in one kernel on each GPU and without a copy between them.
//
// Each rank writes its values to a mailbox of every other rank, then a flag behind them. When the flags of all ranks
// have come, it adds the parts: fp32, in ascending rank, rounded once, as sum_blocks() does. So all ranks have the bits
// of every other path.
//
// Bound by the time of a write to a peer and of its flag, some microseconds; then by (ranks - 1) tensors over the
// links. A thread has 16 bytes. Block b of a rank exchanges only with block b of the others.
//
// Epochs. A block counts its sums in its own word in device memory: a recorded graph replays with the same parameters.
// The epoch's parity chooses one of two sets of slots. A rank writes epoch e + 2 behind its sum e + 1, so behind the
// others' flags e + 1. They set these behind their kernel of epoch e: no slot is overwritten that is still read.
//
// All blocks of a sum must be resident together, on every rank: 256 of 128 threads take a third of an H100.
#pragma once

#include "base/dtype.h"
#include "cuda/kernels/simt_peers.h"

namespace longcat::gpu {

using namespace simt;

constexpr int kMostPeers = 8;              // ranks of a sum
constexpr int64_t kPeerBlocks = 256;       // of a kernel
constexpr int64_t kPeerBlockBytes = 2048;  // of the tensor, in a block

// A rank's memory that the others write to, as this GPU maps it.
struct PeerMailbox {
  uint32_t* flags;   // [kMostPeers, kPeerBlocks]: the last epoch that a rank has written, by block
  std::byte* slots;  // [2, ranks, slot_bytes]: by parity and rank
};

// What a rank's sums share.
struct PeerMemory {
  int32_t rank, ranks;
  int64_t slot_bytes;    // a multiple of kPeerBlockBytes
  uint32_t* epochs;      // [kPeerBlocks]: sums so far, by block
  const uint32_t* stop;  // of the host
  PeerMailbox mailboxes[kMostPeers];
};

// kType: f32, bf16 or i32.
template <DType kType>
struct PeerSum {
  static_assert(kType == DType::f32 || kType == DType::bf16 || kType == DType::i32);
  static constexpr int kThreads = 128, kBytes = kPeerBlockBytes / kThreads;  // bytes of a thread
  static constexpr int kElement = kType == DType::bf16 ? 2 : 4, kEach = kBytes / kElement;
  static constexpr int64_t kMaxBlocks = kPeerBlocks;
  static constexpr uint32_t kSharedBytes = 0;
  static_assert(kBytes == 16);

  std::byte* x;     // [count]: this rank's part, then the sum
  int64_t count;    // elements, at most slot_bytes of them
  bool is_aligned;  // x, to 16 bytes
  PeerMemory peers;

  LC_HD void operator()(uint32_t) const {
    launch_next_grid();
    wait_for_prior_grid();
    const int64_t block = block_idx(), at = block * kPeerBlockBytes + thread_idx() * kBytes;
    const int64_t left = count - at / kElement;  // elements from this thread's on
    const uint32_t epoch = load_global(peers.epochs + block) + 1;
    const int64_t parity = epoch % 2;
    const int rank = peers.rank, ranks = peers.ranks;
    const Word4 own = load_part(at, left);
    LC_UNROLL for (int i = 1; i < kMostPeers; ++i) {
      const int peer = rank + i < ranks ? rank + i : rank + i - ranks;  // not all ranks write to rank 0 at once
      if (i < ranks && left > 0) store_global(slot(peer, parity, rank, at), own);
    }
    sync_threads();
    const int peer = thread_idx();
    if (peer < ranks && peer != rank) {
      signal_peer(peers.mailboxes[peer].flags + rank * kPeerBlocks + block, epoch);
      wait_for_peer(peers.mailboxes[rank].flags + peer * kPeerBlocks + block, epoch, peers.stop);
    }
    sync_threads();
    if (peer == 0) store_global(peers.epochs + block, epoch);
    if (left <= 0) return;
    Word4 parts[kMostPeers];
    LC_UNROLL for (int r = 0; r < kMostPeers; ++r) {
      if (r < ranks) parts[r] = r == rank ? own : load_global(slot(rank, parity, r, at));
    }
    store_sum(at, left, parts);
  }

  LC_HD Word4* slot(int of, int64_t parity, int from, int64_t at) const {
    return reinterpret_cast<Word4*>(peers.mailboxes[of].slots + (parity * peers.ranks + from) * peers.slot_bytes + at);
  }

  // Zeros from the end on.
  LC_HD Word4 load_part(int64_t at, int64_t left) const {
    if (left >= kEach && is_aligned) return load_global(reinterpret_cast<const Word4*>(x + at));
    Word4 part = {};
    LC_UNROLL for (int i = 0; i < kEach; ++i) if (i < left) {
      if constexpr (kElement == 2) {
        part.v[i / 2] |= uint32_t{load_global(reinterpret_cast<const uint16_t*>(x + at) + i)} << i % 2 * 16;
      } else {
        part.v[i] = load_global(reinterpret_cast<const uint32_t*>(x + at) + i);
      }
    }
    return part;
  }

  LC_HD void store_sum(int64_t at, int64_t left, const Word4 (&parts)[kMostPeers]) const {
    Word4 sum;
    LC_UNROLL for (int w = 0; w < 4; ++w) sum.v[w] = sum_of(parts, w);
    if (left >= kEach && is_aligned) return store_global(reinterpret_cast<Word4*>(x + at), sum);
    LC_UNROLL for (int i = 0; i < kEach; ++i) if (i < left) {
      if constexpr (kElement == 2) {
        store_global(reinterpret_cast<uint16_t*>(x + at) + i, static_cast<uint16_t>(sum.v[i / 2] >> i % 2 * 16));
      } else {
        store_global(reinterpret_cast<uint32_t*>(x + at) + i, sum.v[i]);
      }
    }
  }

  // Word w of the sum.
  LC_HD uint32_t sum_of(const Word4 (&parts)[kMostPeers], int w) const {
    if constexpr (kType == DType::i32) {
      uint32_t sum = parts[0].v[w];
      LC_UNROLL for (int r = 1; r < kMostPeers; ++r) if (r < peers.ranks) sum += parts[r].v[w];
      return sum;
    } else if constexpr (kType == DType::bf16) {
      float low = low_bf16(parts[0].v[w]), high = high_bf16(parts[0].v[w]);
      LC_UNROLL for (int r = 1; r < kMostPeers; ++r) if (r < peers.ranks) {
        low = add_rn(low, low_bf16(parts[r].v[w]));
        high = add_rn(high, high_bf16(parts[r].v[w]));
      }
      return pack_bf16(low, high);
    } else {
      float sum = std::bit_cast<float>(parts[0].v[w]);
      LC_UNROLL for (int r = 1; r < kMostPeers; ++r) if (r < peers.ranks) {
        sum = add_rn(sum, std::bit_cast<float>(parts[r].v[w]));
      }
      return std::bit_cast<uint32_t>(sum);
    }
  }
};

}  // namespace longcat::gpu

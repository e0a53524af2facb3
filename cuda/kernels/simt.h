// The instructions of tensor-core kernels. On a GPU they are PTX. On the host they call the emulator that proves such
// kernels; docs/cuda.md explains both.
//
// A kernel is a struct of parameters. Its call operator is the work of one thread, and gets the address of the block's
// shared memory. kThreads and kSharedBytes are of a block.
//
// A kernel touches memory only by these functions, and never dereferences a pointer. Where all lanes of a warp take
// part ("collective"), all 32 call, at the same place. Multiply-adds are written out (fma_rn, mul_rn, add_rn), so that
// every compiler rounds alike.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/dtype.h"
#include "cuda/kernels/qualifiers.h"
#include "cuda/kernels/simt_machine.h"

// The last parameter of each function: the caller's place, for the emulator's findings.
#define LC_PLACE [[maybe_unused]] ::longcat::simt::Place place = {__builtin_FILE(), __builtin_LINE()}

namespace longcat::simt {

struct alignas(8) Float2 {
  float v[2];
};
struct alignas(16) Float4 {
  float v[4];
};
struct alignas(8) Word2 {
  uint32_t v[2];
};
struct alignas(16) Word4 {
  uint32_t v[4];
};

// --- threads ---------------------------------------------------------------------------------------------------------

LC_HD inline int thread_idx() {
#ifdef __CUDA_ARCH__
  return static_cast<int>(threadIdx.x);
#else
  return machine->thread;
#endif
}
LC_HD inline int lane_idx() { return thread_idx() % 32; }
LC_HD inline int warp_idx() { return thread_idx() / 32; }
LC_HD inline int64_t block_idx() {
#ifdef __CUDA_ARCH__
  return blockIdx.x;
#else
  return machine->block;
#endif
}
LC_HD inline int64_t num_blocks() {
#ifdef __CUDA_ARCH__
  return gridDim.x;
#else
  return machine->num_blocks;
#endif
}

// --- barriers --------------------------------------------------------------------------------------------------------

// All threads of the block.
LC_HD inline void sync_threads(LC_PLACE) {
#ifdef __CUDA_ARCH__
  __syncthreads();
#else
  machine->sync_threads(place);
#endif
}
// Orders the memory accesses of a warp's lanes. No other collective does.
LC_HD inline void sync_warp(LC_PLACE) {
#ifdef __CUDA_ARCH__
  __syncwarp();
#else
  machine->sync_warp(place);
#endif
}
// Barrier `id` (1 to 15) of `threads` threads, whole warps: arrive() does not wait.
LC_HD inline void named_barrier_sync(int id, int threads, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  machine->named_barrier(id, threads, true, place);
#endif
}
LC_HD inline void named_barrier_arrive(int id, int threads, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  machine->named_barrier(id, threads, false, place);
#endif
}

// --- exchange in a warp: collective ----------------------------------------------------------------------------------

// The `value` of another lane. T has 4 bytes.
template <class T>
LC_HD inline T shuffle(T value, int lane, LC_PLACE) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDA_ARCH__
  return __shfl_sync(~0u, value, lane);
#else
  return std::bit_cast<T>(machine->exchange(std::bit_cast<uint32_t>(value), place)[lane & 31]);
#endif
}
template <class T>
LC_HD inline T shuffle_xor(T value, int mask, LC_PLACE) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDA_ARCH__
  return __shfl_xor_sync(~0u, value, mask);
#else
  return std::bit_cast<T>(machine->exchange(std::bit_cast<uint32_t>(value), place)[(lane_idx() ^ mask) & 31]);
#endif
}
// Of the lane `delta` further up or down; a lane without such a neighbour gets its own.
template <class T>
LC_HD inline T shuffle_down(T value, int delta, LC_PLACE) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDA_ARCH__
  return __shfl_down_sync(~0u, value, delta);
#else
  const int from = lane_idx() + delta;
  return std::bit_cast<T>(machine->exchange(std::bit_cast<uint32_t>(value), place)[from < 32 ? from : lane_idx()]);
#endif
}
template <class T>
LC_HD inline T shuffle_up(T value, int delta, LC_PLACE) {
  static_assert(sizeof(T) == 4);
#ifdef __CUDA_ARCH__
  return __shfl_up_sync(~0u, value, delta);
#else
  const int from = lane_idx() - delta;
  return std::bit_cast<T>(machine->exchange(std::bit_cast<uint32_t>(value), place)[from >= 0 ? from : lane_idx()]);
#endif
}
// Bit l: whether lane l votes yes.
LC_HD inline uint32_t ballot(bool vote, LC_PLACE) {
#ifdef __CUDA_ARCH__
  return __ballot_sync(~0u, vote);
#else
  const uint32_t* votes = machine->exchange(vote, place);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= votes[lane] << lane;
  return bits;
#endif
}
// Bit l: whether lane l has the same value.
LC_HD inline uint32_t match_any(uint32_t value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  return __match_any_sync(~0u, value);
#else
  const uint32_t* values = machine->exchange(value, place);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= uint32_t{values[lane] == value} << lane;
  return bits;
#endif
}
LC_HD inline uint32_t warp_sum(uint32_t value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  return __reduce_add_sync(~0u, value);
#else
  const uint32_t* values = machine->exchange(value, place);
  uint32_t sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += values[lane];
  return sum;
#endif
}
LC_HD inline uint32_t warp_max(uint32_t value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  return __reduce_max_sync(~0u, value);
#else
  const uint32_t* values = machine->exchange(value, place);
  uint32_t max = 0;
  for (int lane = 0; lane < 32; ++lane) max = values[lane] > max ? values[lane] : max;
  return max;
#endif
}

// --- tensor cores: collective ----------------------------------------------------------------------------------------

// Reads 1, 2 or 4 matrices of 8 x 8 values of 16 bits. Lane 8 m + i gives the address of row i of matrix m, 16 bytes
// aligned to 16. Lane l gets of each matrix the values (l / 4, 2 (l % 4)) and its right neighbour, or transposed,
// (2 (l % 4), l / 4) and the one below.
template <int kMatrices>
LC_HD inline void ldmatrix(uint32_t (&out)[kMatrices], uint32_t row, LC_PLACE) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#ifdef __CUDA_ARCH__
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(out[0]) : "r"(row) : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
  }
#else
  machine->ldmatrix(out, kMatrices, false, row, place);
#endif
}
template <int kMatrices>
LC_HD inline void ldmatrix_trans(uint32_t (&out)[kMatrices], uint32_t row, LC_PLACE) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#ifdef __CUDA_ARCH__
  if constexpr (kMatrices == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(out[0]) : "r"(row) : "memory");
  } else if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
  }
#else
  machine->ldmatrix(out, kMatrices, true, row, place);
#endif
}

// An 8 x 8 matrix of 16-bit values, of which lane l has the values (l / 4, 2 (l % 4)) and its right neighbour: as the
// results of a product lie. Returns those of the transposed matrix.
LC_HD inline uint32_t transpose(uint32_t pair, LC_PLACE) {
#ifdef __CUDA_ARCH__
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
  return turned;
#else
  const uint32_t* const pairs = machine->exchange(pair, place);
  const int lane = lane_idx(), column = lane / 4, row = 2 * (lane % 4);
  const auto value = [&](int of_row) { return pairs[of_row * 4 + column / 2] >> column % 2 * 16 & 0xffffu; };
  return value(row) | value(row + 1) << 16;
#endif
}

// d += a b, m16n8k16: a [16, 16] and b [16, 8] bf16, d [16, 8] f32. With g = lane / 4 and t = 2 (lane % 4), and pairs
// of values beside each other:
//   d: (g, t) (g, t + 1) (g + 8, t) (g + 8, t + 1)
//   a: pairs from (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)      b: pairs down from (t, g), (t + 8, g)
// ldmatrix<4> makes a from row-major memory, where lane l names row l % 16, column l / 16 * 8.
LC_HD inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  const uint32_t b[2] = {b0, b1};
  machine->mma_bf16(d, a, b, place);
#endif
}

// --- shared memory ---------------------------------------------------------------------------------------------------

// T has 2, 4, 8 or 16 bytes; `at` is aligned to them.
template <class T>
LC_HD inline T load_shared(uint32_t at, LC_PLACE) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T value;
#ifdef __CUDA_ARCH__
  uint32_t words[4] = {};
  if constexpr (sizeof(T) == 2) {
    uint16_t half;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(half) : "r"(at) : "memory");
    memcpy(&value, &half, 2);
    return value;
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(words[0]) : "r"(at) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(at) : "memory");
  } else {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(at)
                 : "memory");
  }
  memcpy(&value, words, sizeof(T));
#else
  std::memcpy(&value, machine->shared(at, sizeof(T), Access::read, place), sizeof(T));
#endif
  return value;
}
template <class T>
LC_HD inline void store_shared(uint32_t at, T value, LC_PLACE) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    uint16_t half;
    memcpy(&half, &value, 2);
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(half) : "memory");
  } else {
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    if constexpr (sizeof(T) == 4) {
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(words[0]) : "memory");
    } else if constexpr (sizeof(T) == 8) {
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(at), "r"(words[0]), "r"(words[1]) : "memory");
    } else {
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                   "r"(words[3])
                   : "memory");
    }
  }
#else
  std::memcpy(machine->shared(at, sizeof(T), Access::write, place), &value, sizeof(T));
#endif
}
// Adds to a word, and returns what was there.
LC_HD inline uint32_t atomic_add_shared(uint32_t at, uint32_t value, LC_PLACE) {
  uint32_t before;
#ifdef __CUDA_ARCH__
  asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(at), "r"(value) : "memory");
#else
  uint32_t* const word = static_cast<uint32_t*>(machine->shared(at, 4, Access::atomic, place));
  before = *word;
  *word += value;
#endif
  return before;
}
LC_HD inline void atomic_max_shared(uint32_t at, uint32_t value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("red.shared.max.u32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
#else
  uint32_t* const word = static_cast<uint32_t*>(machine->shared(at, 4, Access::atomic, place));
  if (value > *word) *word = value;
#endif
}

// --- global memory ---------------------------------------------------------------------------------------------------

template <class T>
LC_HD inline T load_global(const T* at, LC_PLACE) {
#ifdef __CUDA_ARCH__
  return *at;
#else
  T value;
  std::memcpy(&value, machine->global(at, sizeof(T), alignof(T), Access::read, place), sizeof(T));
  return value;
#endif
}
template <class T>
LC_HD inline void store_global(T* at, T value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  *at = value;
#else
  std::memcpy(machine->global(at, sizeof(T), alignof(T), Access::write, place), &value, sizeof(T));
#endif
}
// 16 bytes of weights, which no kernel writes and which are read once: they pass by the L1 cache.
LC_HD inline Word4 load_weights(const void* at, LC_PLACE) {
  Word4 value;
#ifdef __CUDA_ARCH__
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.v[0]), "=r"(value.v[1]), "=r"(value.v[2]), "=r"(value.v[3])
               : "l"(at));
#else
  std::memcpy(&value, machine->global(at, 16, 16, Access::read, place), 16);
#endif
  return value;
}

// Integer atomics: their result does not depend on the order. Relaxed: they order no other access.
template <class T>
LC_HD inline T atomic_add_global(T* at, T value, LC_PLACE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#ifdef __CUDA_ARCH__
  return atomicAdd(at, value);
#else
  T* const word = static_cast<T*>(machine->global(at, sizeof(T), alignof(T), Access::atomic, place));
  const T before = *word;
  *word += value;
  return before;
#endif
}
template <class T>
LC_HD inline T atomic_max_global(T* at, T value, LC_PLACE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#ifdef __CUDA_ARCH__
  return atomicMax(at, value);
#else
  T* const word = static_cast<T*>(machine->global(at, sizeof(T), alignof(T), Access::atomic, place));
  const T before = *word;
  if (value > before) *word = value;
  return before;
#endif
}

// --- between blocks --------------------------------------------------------------------------------------------------

// Adds to a counter, and returns what was there. Releases this thread's writes, and those that barriers put before it,
// to each later arrive() or wait_at_least() on the counter. So the last of n blocks may read what all have written:
//   sync_threads();
//   if (thread_idx() == 0) store_shared(at, arrive(counter, 1u));
//   sync_threads();
//   if (load_shared<uint32_t>(at) == n - 1) ...
LC_HD inline uint32_t arrive(uint32_t* counter, uint32_t value, LC_PLACE) {
  uint32_t before;
#ifdef __CUDA_ARCH__
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
#else
  uint32_t* const word = static_cast<uint32_t*>(machine->global(counter, 4, 4, Access::atomic, place));
  before = *word;
  *word += value;
  machine->order(counter, Order::both, place);
#endif
  return before;
}
// Waits until the counter is at least `value`. All blocks that add to it must be resident.
LC_HD inline void wait_at_least(const uint32_t* counter, uint32_t value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  uint32_t found;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
  } while (found < value);
#else
  machine->wait_at_least(counter, value, place);
#endif
}

// Programmatic dependent launch: what the grid before has written may be read only behind this.
LC_HD inline void wait_for_prior_grid(LC_PLACE) {
#ifdef __CUDA_ARCH__
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  machine->wait_for_prior_grid(place);
#endif
}
// The next grid may start; it sees nothing of this one before its own wait.
LC_HD inline void launch_next_grid() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

// Copies 16 bytes from global to shared memory, or writes zeros where not `valid` (`from` is then any valid address).
// They arrive at the latest at the thread's cp_async_wait; other threads see them behind a barrier after that.
LC_HD inline void cp_async(uint32_t to, const void* from, bool valid = true, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#else
  machine->cp_async(to, from, valid, place);
#endif
}
// Closes a group of this thread's copies; a group may be empty.
LC_HD inline void cp_async_commit(LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  machine->cp_async_commit(place);
#endif
}
// Waits until at most the last kGroupsLeft groups of this thread are under way.
template <int kGroupsLeft>
LC_HD inline void cp_async_wait(LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#else
  machine->cp_async_wait(kGroupsLeft, place);
#endif
}

// An mbarrier: 8 bytes of shared memory. A phase ends when `arrivals` threads have arrived and all expected bytes have.
// One thread initialises it; a block barrier follows.
LC_HD inline void mbarrier_init(uint32_t barrier, int arrivals, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the copy engine sees it too
#endif
#else
  machine->mbarrier_init(barrier, arrivals, place);
#endif
}
LC_HD inline void mbarrier_arrive(uint32_t barrier, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
#else
  machine->mbarrier_arrive(barrier, 0, place);
#endif
}
// Arrives, and lets the phase wait for `bytes` of bulk_copy().
LC_HD inline void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes, LC_PLACE) {
#ifdef __CUDA_ARCH__
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(barrier), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
#else
  machine->mbarrier_arrive(barrier, bytes, place);
#endif
}
// Waits for the end of the phase of this parity: 0 for the first, then 1, 0, ...
LC_HD inline void mbarrier_wait(uint32_t barrier, uint32_t parity, LC_PLACE) {
#ifdef __CUDA_ARCH__
  uint32_t done;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
  } while (!done);
#else
  machine->mbarrier_wait(barrier, parity, place);
#endif
}
// Arrives when all cp_async() of this thread so far have arrived, without waiting for them.
LC_HD inline void cp_async_arrive(uint32_t barrier, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#else
  machine->cp_async_arrive(barrier, place);
#endif
}
// Copies `bytes` from global to shared memory; all three are multiples of 16. They arrive at `barrier`, which expects
// them. Needs 9.0.
LC_HD inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, LC_PLACE) {
#ifdef __CUDA_ARCH__
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
#else
  __trap();
#endif
#else
  machine->bulk_copy(to, from, bytes, barrier, place);
#endif
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

LC_HD inline float fma_rn(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
LC_HD inline float mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LC_HD inline double mul_rn(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
LC_HD inline float add_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
// 2^x to 2 ulp; the last bits differ between GPU and host. 2^-inf = 0.
LC_HD inline float exp2_approx(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}
// Two values rounded to bf16, `low` in the lower half: the lower index of a fragment.
LC_HD inline uint32_t pack_bf16(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return to_bf16(low).bits | uint32_t{to_bf16(high).bits} << 16;
#endif
}
// The product of two pairs, rounded to bf16. Subnormal values count.
LC_HD inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
#else
  const auto half = [&](int shift) {
    const float product =
        to_float(bf16{static_cast<uint16_t>(a >> shift)}) * to_float(bf16{static_cast<uint16_t>(b >> shift)});
    return uint32_t{to_bf16(product).bits} << shift;
  };
  return half(0) | half(16);
#endif
}
// The difference of two pairs, rounded to bf16.
LC_HD inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  uint32_t difference;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  return difference;
#else
  return pack_bf16(std::bit_cast<float>(a << 16) - std::bit_cast<float>(b << 16),
                   std::bit_cast<float>(a & 0xffff0000u) - std::bit_cast<float>(b & 0xffff0000u));
#endif
}
LC_HD inline float half_value(uint16_t half) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  return half_to_float(half);
#endif
}
LC_HD inline float low_bf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
LC_HD inline float high_bf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
LC_HD constexpr float minus_infinity() { return std::bit_cast<float>(0xff800000u); }

LC_HD inline int count_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __popc(bits);
#else
  return std::popcount(bits);
#endif
}
// The lowest set bit; 32 for none.
LC_HD inline int lowest_bit(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return bits ? __ffs(static_cast<int>(bits)) - 1 : 32;
#else
  return std::countr_zero(bits);
#endif
}

}  // namespace longcat::simt

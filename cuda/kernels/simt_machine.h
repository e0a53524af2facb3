// The functions that simt.h calls on the host in place of a GPU's instructions. cuda/emulation/simt_emulator.h
// implements them; the package has no implementation.
#pragma once

#include <cstdint>

namespace longcat::simt {

// The place in a kernel's source that an instruction stands at.
struct Place {
  const char* file;
  int line;
};

enum class Access { read, write, atomic };
enum class Order { acquire, release, both };

class Machine {
 public:
  virtual ~Machine() = default;

  // The thread that runs now.
  int thread = 0, num_threads = 0;
  int64_t block = 0, num_blocks = 0;

  virtual void sync_threads(Place place) = 0;
  virtual void sync_warp(Place place) = 0;
  virtual void named_barrier(int id, int threads, bool waits, Place place) = 0;

  // All 32 lanes hand in a value and get all 32, valid until the warp's next but one call.
  virtual const uint32_t* exchange(uint32_t value, Place place) = 0;
  virtual void ldmatrix(uint32_t* out, int matrices, bool transposed, uint32_t row, Place place) = 0;
  virtual void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Place place) = 0;

  // Where the bytes of an access lie in the host's memory.
  virtual void* shared(uint32_t at, int bytes, Access access, Place place) = 0;
  virtual void* global(const void* at, int bytes, int alignment, Access access, Place place) = 0;

  virtual void cp_async(uint32_t to, const void* from, bool valid, Place place) = 0;
  virtual void cp_async_commit(Place place) = 0;
  virtual void cp_async_wait(int groups_left, Place place) = 0;

  virtual void mbarrier_init(uint32_t barrier, int arrivals, Place place) = 0;
  virtual void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes, Place place) = 0;
  virtual void mbarrier_wait(uint32_t barrier, uint32_t parity, Place place) = 0;
  virtual void cp_async_arrive(uint32_t barrier, Place place) = 0;
  virtual void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, Place place) = 0;

  // Orders this thread and those that use the same flag in global memory.
  virtual void order(const void* flag, Order order, Place place) = 0;
  virtual void wait_at_least(const uint32_t* flag, uint32_t value, Place place) = 0;
  virtual void signal_peer(uint32_t* flag, uint32_t value, Place place) = 0;
  virtual void wait_for_peer(const uint32_t* flag, uint32_t value, const uint32_t* stop, Place place) = 0;
  virtual void wait_for_prior_grid(Place place) = 0;
};

// The machine whose thread runs on this thread of the host.
inline constinit thread_local Machine* machine = nullptr;

}  // namespace longcat::simt

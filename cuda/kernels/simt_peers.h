// Signals between kernels on several GPUs of one machine, as simt.h has them between blocks of one GPU. A flag is a
// word in memory that peers map. Its one writer stores ascending values, so no atomic operation is needed: peers on
// PCIe have none.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::simt {

// Stores `value` in a flag. Releases this thread's writes, and those that barriers put before it, to each later
// wait_for_peer() on the flag, on any GPU.
LC_HD inline void signal_peer(uint32_t* flag, uint32_t value, LC_PLACE) {
#ifdef __CUDA_ARCH__
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
#else
  machine->signal_peer(flag, value, place);
#endif
}

// Whether a flag has reached a value. Values wrap around; two of them are less than 2^31 apart.
LC_HD inline bool has_reached(uint32_t found, uint32_t value) { return static_cast<int32_t>(found - value) >= 0; }

// Waits until a flag has reached `value`. Ends also where *stop, a word of the host, is not 0: the peer's writes may
// then be missing.
LC_HD inline void wait_for_peer(const uint32_t* flag, uint32_t value, const uint32_t* stop, LC_PLACE) {
#ifdef __CUDA_ARCH__
  constexpr uint32_t kPolls = 256;  // of the flag, for each read of the host's memory
  uint32_t found, stopped = 0;
  for (uint32_t polls = 1; stopped == 0; ++polls) {
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(found) : "l"(flag) : "memory");
    if (has_reached(found, value)) break;
    if (polls % kPolls == 0) asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(stopped) : "l"(stop) : "memory");
  }
#else
  machine->wait_for_peer(flag, value, stop, place);
#endif
}

}  // namespace longcat::simt

// Device memory that the kernels of several ranks of one machine read and write.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longcat {

// What a rank tells the others of its shared memory: plain bytes, for any transport.
struct SharedMemoryHandle {
  char machine[64];  // equal on one machine alone
  char device[16];   // its bus id
  char memory[64];   // of the CUDA runtime
};

}  // namespace longcat

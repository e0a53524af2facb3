#include "cuda/emulation/emulated_ops.h"

#include "cuda/emulation/emulated_device.h"

namespace longcat {

std::unique_ptr<CudaOps> make_emulated_cuda_ops(DType activation_dtype, bool fp8, bool reversed, bool small) {
  constexpr int64_t kCapacity = int64_t{8} << 30;  // [bytes] of address space
  // The reversed device gets a small workspace, so that a block of decode attention takes its pieces in turn, or the
  // tokens take several launches.
  constexpr int64_t kSmallWorkspace = 320 << 10;
  constexpr int64_t kShared = int64_t{227} << 10, kSmallShared = int64_t{99} << 10;  // [bytes] of a block
  return std::make_unique<CudaOps>(
      std::make_unique<EmulatedDevice>(kCapacity, fp8, reversed, small ? kSmallShared : kShared), activation_dtype,
      reversed ? kSmallWorkspace : CudaOps::kWorkspaceBytes);
}

}  // namespace longcat

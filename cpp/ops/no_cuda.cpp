// Replaces the CUDA backend at link time where CUDA is not built.
#include "ops/backend.h"

namespace longcat {

std::unique_ptr<Ops> make_cuda_ops(int, double, int) {
  throw Error("[device] this build of longcat has no CUDA backend: use device=\"cpu\"");
}

bool cuda_is_built() { return false; }
bool has_gpu() { return false; }

}  // namespace longcat

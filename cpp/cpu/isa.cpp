#include "cpu/isa.h"

#include "cpu/vec.h"

namespace longcat {

const char* cpu_isa() {
#ifdef LC_HAS_CLONES
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "portable";
}

}  // namespace longcat

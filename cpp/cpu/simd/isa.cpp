#include "cpu/simd/isa.h"

#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "cpu/simd/vec.h"

namespace longcat {

namespace {

constexpr Isa kAll[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni};

Isa best_of_this_machine() {
#if defined(__x86_64__) && defined(__GNUC__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512vnni")) return Isa::avx512_vnni;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa chosen() {
  const Isa best = best_of_this_machine();
  const char* wanted = std::getenv("LONGCAT_ISA");
  if (!wanted || !*wanted) return best;
  for (const Isa isa : kAll)
    if (std::strcmp(wanted, name_of(isa)) == 0) {
      if (isa > best)
        throw Error(str_cat("[cpu] LONGCAT_ISA=", wanted, ": this machine has ", name_of(best), " at most"));
      return isa;
    }
  throw Error(str_cat("[cpu] LONGCAT_ISA=", wanted, " is unknown: expected portable, avx2, avx512 or avx512_vnni"));
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = chosen();
  return isa;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_vnni:
      return "avx512_vnni";
  }
  return "?";
}

}  // namespace longcat

#include "cpu/simd/isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace longcat {

namespace {

#if defined(__x86_64__)

constexpr Isa kSets[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16};

// __builtin_cpu_supports() of some compilers does not know it.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

// Asks for each CPU extension that cpp/cpu/kernels.cmake enables by a compiler option, such as -mfma and -mbmi2.
Isa best_of_this_machine() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (vnni) return Isa::avx512_vnni;
  if (avx512) return Isa::avx512;
  return avx2 ? Isa::avx2 : Isa::portable;
}

#elif defined(__aarch64__) && defined(__linux__)

constexpr Isa kSets[] = {Isa::portable, Isa::neon_dotprod};

Isa best_of_this_machine() { return ::getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? Isa::neon_dotprod : Isa::portable; }

#else

constexpr Isa kSets[] = {Isa::portable};

Isa best_of_this_machine() { return Isa::portable; }

#endif

constexpr Isa kAll[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::neon_dotprod};

Isa chosen() {
  const std::span<const Isa> here = isas_of_this_machine();
  const char* wanted = std::getenv("LONGCAT_ISA");
  if (!wanted || !*wanted) return here.back();
  std::string sets;
  for (const Isa isa : here) {
    if (std::strcmp(wanted, name_of(isa)) == 0) return isa;
    sets += str_cat(sets.empty() ? "" : ", ", name_of(isa));
  }
  for (const Isa isa : kAll)
    if (std::strcmp(wanted, name_of(isa)) == 0)
      throw Error(str_cat("[cpu] LONGCAT_ISA=", wanted, ": this machine has ", sets));
  throw Error(str_cat("[cpu] LONGCAT_ISA=", wanted, " is unknown: expected one of ", sets));
}

}  // namespace

std::span<const Isa> isas_of_this_machine() {
  static const size_t count = [] {
    size_t n = 1;
    while (kSets[n - 1] != best_of_this_machine()) ++n;
    return n;
  }();
  return {kSets, count};
}

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
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::neon_dotprod:
      return "neon_dotprod";
  }
  return "?";
}

}  // namespace longcat

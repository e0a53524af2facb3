#include "cpu/simd/isa.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "base/error.h"
#include "cpu/simd/assumed_isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace longcat {

namespace {

#if defined(__x86_64__)

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;

  // All zeros where the processor lacks the leaf.
  Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

unsigned saved_registers() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr bool has_all(unsigned found, unsigned bits) { return (found & bits) == bits; }

std::vector<Isa> sets_here() {
  const Cpuid basic(1, 0), extended(7, 0), more(7, 1);
  return sets_of({.ecx1 = basic.ecx,
                  .ebx7 = extended.ebx,
                  .ecx7 = extended.ecx,
                  .edx7 = extended.edx,
                  .eax7_1 = more.eax,
                  .xcr0 = has_all(basic.ecx, bit_OSXSAVE) ? saved_registers() : 0});
}

#elif defined(__aarch64__) && defined(__linux__)

std::vector<Isa> sets_here() {
  if (::getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return {Isa::portable, Isa::neon_dotprod};
  return {Isa::portable};
}

#else

std::vector<Isa> sets_here() { return {Isa::portable}; }

#endif

constexpr Isa kAll[] = {Isa::portable,    Isa::avx2,        Isa::avx_vnni, Isa::avx512,
                        Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx_bf16, Isa::neon_dotprod};

std::optional<Isa> assumed;

// Throws Error when Linux refuses registers of the set.
Isa permitted(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx_bf16)
    if (const int error = request_tiles())
      throw Error(str_cat("[cpu] LONGCAT_ISA=amx_bf16: Linux refuses the tile registers: ", std::strerror(error)));
#endif
  return isa;
}

Isa chosen() {
  const std::span<const Isa> here = isas_of_this_machine();
  const char* wanted = std::getenv("LONGCAT_ISA");
  if (!wanted || !*wanted) return here.back() == Isa::amx_bf16 ? Isa::avx512_bf16 : here.back();
  std::string sets;
  for (const Isa isa : here) {
    if (std::strcmp(wanted, name_of(isa)) == 0) return permitted(isa);
    sets += str_cat(sets.empty() ? "" : ", ", name_of(isa));
  }
  for (const Isa isa : kAll)
    if (std::strcmp(wanted, name_of(isa)) == 0)
      throw Error(str_cat("[cpu] LONGCAT_ISA=", wanted, ": this machine has ", sets));
  throw Error(str_cat("[cpu] LONGCAT_ISA=", wanted, " is unknown: expected one of ", sets));
}

}  // namespace

#if defined(__x86_64__)

// Asks for each CPU extension that cpp/cpu/kernels.cmake enables by a compiler option, such as -mfma and -mbmi2. Not by
// __builtin_cpu_supports: zig's runtime library answers false to everything.
std::vector<Isa> sets_of(const CpuFeatures& found) {
  constexpr unsigned kYmm = 0x06, kZmm = 0xe6, kTiles = 0x60000;                    // bits of XCR0
  constexpr unsigned kAvxVnni = 1u << 4, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // compilers differ in their names
  std::vector<Isa> sets = {Isa::portable};
  if (!has_all(found.ecx1, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C) || !has_all(found.xcr0, kYmm) ||
      !has_all(found.ebx7, bit_AVX2 | bit_BMI | bit_BMI2))
    return sets;
  sets.push_back(Isa::avx2);
  if (has_all(found.eax7_1, kAvxVnni)) sets.push_back(Isa::avx_vnni);
  if (!has_all(found.xcr0, kZmm) || !has_all(found.ebx7, bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ))
    return sets;
  sets.push_back(Isa::avx512);
  if (!has_all(found.ecx7, bit_AVX512VNNI)) return sets;
  sets.push_back(Isa::avx512_vnni);
  if (!has_all(found.eax7_1, bit_AVX512BF16)) return sets;
  sets.push_back(Isa::avx512_bf16);
  if (has_all(found.edx7, kAmxBf16 | kAmxTile) && has_all(found.xcr0, kTiles)) sets.push_back(Isa::amx_bf16);
  return sets;
}

int request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const int error = ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
  return error;
#else
  return ENOSYS;
#endif
}

#endif

std::span<const Isa> isas_of_this_machine() {
  static const std::vector<Isa> sets = sets_here();
  return sets;
}

Isa cpu_isa() {
  static const Isa isa = assumed ? *assumed : chosen();
  return isa;
}

void assume_isa(Isa isa) {
  assumed = isa;
  LC_CHECK(cpu_isa() == isa);
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx_vnni:
      return "avx_vnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx_bf16:
      return "amx_bf16";
    case Isa::neon_dotprod:
      return "neon_dotprod";
  }
  return "?";
}

}  // namespace longcat

// The instruction sets of the CPU kernels.
#pragma once

#include <span>
#include <vector>

namespace longcat {

enum class Isa {
  portable,      // what every processor of the architecture has: SSE2 on x86-64, NEON on Arm
  avx2,          // and FMA, F16C, BMI 1 and 2
  avx_vnni,      // avx2, and 8-bit products summed in 32 bits: Intel's processors of laptops since Alder Lake
  avx512,        // avx2, and F, BW, DQ, VL
  avx512_vnni,   // 8-bit products summed in 32 bits
  avx512_bf16,   // bf16 products summed in f32
  amx_bf16,      // the same in tiles
  neon_dotprod,  // Arm v8.2: 8-bit products summed in 32 bits
};

// The sets of this machine in the order of Isa, so the best is the last. Each includes those before it, except that
// avx512 does not include avx_vnni.
std::span<const Isa> isas_of_this_machine();

// The set of all kernels: the machine's best, or the one named by the environment variable LONGCAT_ISA. amx_bf16 must
// be named, because it has not run on a processor that has it. Throws Error when LONGCAT_ISA is unknown or not
// available on this machine, or when Linux refuses the tile registers.
Isa cpu_isa();

const char* name_of(Isa isa);

#if defined(__x86_64__)
// What x86 processors say of themselves: registers of CPUID leaf 1 and leaf 7 (subleaves 0 and 1), and XCR0, the
// registers that the operating system saves for each thread.
struct CpuFeatures {
  unsigned ecx1 = 0, ebx7 = 0, ecx7 = 0, edx7 = 0, eax7_1 = 0, xcr0 = 0;
};
std::vector<Isa> sets_of(const CpuFeatures& found);  // as isas_of_this_machine()

// Asks Linux for the tile registers, once; all threads may then use them. Returns 0, or errno.
int request_tiles();
#endif

}  // namespace longcat

// Compares the kernels of the instruction sets of this machine: kernel_bits.
#include <cstdio>

#include "cpu/simd/isa.h"
#include "tests/native/kernel_bits.h"

int main() {
  std::printf("sets of this machine:");
  for (const longcat::Isa isa : longcat::isas_of_this_machine()) std::printf(" %s", longcat::name_of(isa));
  std::printf("\n");
  int64_t values = 0, differences = 0;
  for (const longcat::KernelBits& row : longcat::compare_instruction_sets()) {
    std::printf("%s, %s: %lld values, %lld differ from %s\n", row.set.c_str(), row.kernel.c_str(),
                static_cast<long long>(row.values), static_cast<long long>(row.differences), row.reference.c_str());
    values += row.values;
    differences += row.differences;
  }
  std::printf("%lld values compared, %lld differ\n", static_cast<long long>(values),
              static_cast<long long>(differences));
  return differences > 0;
}

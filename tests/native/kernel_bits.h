// Compares the kernels of this machine's instruction sets, bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longcat {

struct KernelBits {
  std::string set, reference, kernel;  // the kernel of `set` compared with that of `reference`
  int64_t values = 0, differences = 0;
};

// Products with packed weights, and their inputs in 8 bits, are compared with those of `portable`. The other kernels
// are compared among the sets with fused multiply-adds, whose sums are the same.
std::vector<KernelBits> compare_instruction_sets();

}  // namespace longcat

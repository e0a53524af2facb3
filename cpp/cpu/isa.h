#pragma once

namespace longcat {

// The instruction set whose clones of the inner loops (vec.h) this machine runs: "avx512", "avx2" or "portable".
const char* cpu_isa();

}  // namespace longcat

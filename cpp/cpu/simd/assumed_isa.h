// Lets tests run the kernels of an instruction set that the machine lacks.
#pragma once

#include "cpu/simd/isa.h"

namespace longcat {

// Makes cpu_isa() return this set. Call it before all else.
void assume_isa(Isa isa);

}  // namespace longcat

// The one place where the CPU backend chooses code by the machine's instruction set.
//
// A kernel file (*_kernels.cpp) is plain C++ that kernels.cmake compiles once for each set, with the set's compiler
// options and with its name as LC_ISA. Its header declares a table, a struct of pointers to functions. The file ends
// with the table's values for its set, a specialisation of table_of(). Callers write
// kernels<SoftmaxKernels>().add_scores(...).
//
// The linker keeps one copy of an inline function that several object files contain, perhaps the copy for a set that
// the machine lacks. So a kernel file emits none. Its own functions are in an anonymous namespace. Functions that it
// calls from headers are LC_INLINE (vec.h), or the compiler evaluates them. kernels.cmake checks this in builds with
// tests.
#pragma once

#include "cpu/simd/isa.h"

namespace longcat::cpu {

// The table of one set. Each kernel file defines table_of<Table, Isa::LC_ISA>().
template <class Table, Isa isa>
const Table& table_of();

// The same for a set known at run time, one of this architecture.
template <class Table>
const Table& table_of(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx2:
      return table_of<Table, Isa::avx2>();
    case Isa::avx_vnni:
      return table_of<Table, Isa::avx_vnni>();
    case Isa::avx512:
      return table_of<Table, Isa::avx512>();
    case Isa::avx512_vnni:
      return table_of<Table, Isa::avx512_vnni>();
    case Isa::avx512_bf16:
    case Isa::amx_bf16:  // adds tiles (gemm/tile_kernels.h) and changes no other kernel
      return table_of<Table, Isa::avx512_bf16>();
#elif defined(__aarch64__)
    case Isa::neon_dotprod:
      return table_of<Table, Isa::neon_dotprod>();
#endif
    default:
      return table_of<Table, Isa::portable>();
  }
}

// The table of cpu_isa(), chosen at the first call.
template <class Table>
const Table& kernels() {
  static const Table& table = table_of<Table>(cpu_isa());
  return table;
}

}  // namespace longcat::cpu

#include "cpu/gemm/tile_kernels.h"

#include "cpu/gemm/tile_products.h"
#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

namespace {

struct Amx : vec::Tiles {};  // of this file alone, and so are the functions of TileProducts<Amx>

}  // namespace

template <>
const TileKernels& table_of<TileKernels, Isa::LC_ISA>() {
  using Products = TileProducts<Amx>;
  static constexpr TileKernels kTable{.rows = Products::rows, .groups = Products::groups, .pair = Products::pair};
  return kTable;
}

}  // namespace longcat::cpu

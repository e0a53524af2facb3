#include "cpu/gemm/product_kernels.h"

#include <type_traits>
#include <utility>

#include "cpu/simd/registers.h"

namespace longcat::cpu {

namespace {

using V = vec::Register;

constexpr int64_t kDepthAtOnce = 64;  // between two prefetches
constexpr int64_t kPanelDepth = 192;  // rows of B that stay in the first-level cache

// The operands of one multiply-add.
LC_INLINE V::Floats load_b(const float* b) { return V::load(b); }
LC_INLINE V::Floats repeat_a(float a) { return V::broadcast(a); }
LC_INLINE V::Floats add_product(V::Floats a, V::Floats b, V::Floats sum) { return V::multiply_add(a, b, sum); }
#if defined(__AVX512BF16__)
LC_INLINE V::Bytes load_b(const Bf16Pair* b) { return V::load_ints(b); }
LC_INLINE V::Bytes repeat_a(const Bf16Pair& a) { return V::broadcast4(reinterpret_cast<const int8_t*>(&a)); }
LC_INLINE V::Floats add_product(V::Bytes a, V::Bytes b, V::Floats sum) { return V::dot_bf16(sum, a, b); }
#endif

// C of R rows and N registers of columns, a FloatProduct or a Bf16Product.
template <int R, int N, class Product>
  requires(!std::is_same_v<Product, Int16Product>)
void tile(const Product& product) {
  const Product p = product;  // a copy in registers, which no store can change
  V::Floats acc[R][N];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < N; ++j) acc[r][j] =
      V::load(p.c + r * p.c_row + V::kLanes * j);
  for (int64_t k = 0, stop = 0; k < p.depth; ++k) {
    if (k == stop) {
      stop += kDepthAtOnce;
      if (p.beside) p.beside->some_lines();
    }
    decltype(load_b(p.b)) b[N];
    LC_UNROLL for (int j = 0; j < N; ++j) b[j] = load_b(p.b + k * p.b_row + V::kLanes * j);
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const auto a = repeat_a(p.a[r * p.a_row + k * p.a_column]);
      LC_UNROLL for (int j = 0; j < N; ++j) acc[r][j] = add_product(a, b[j], acc[r][j]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < N; ++j)
      V::store(p.c + r * p.c_row + V::kLanes * j, acc[r][j]);
}

template <int R, int N>
void tile(const Int16Product& product) {
  const Int16Product p = product;
  V::Ints acc[R][N];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < N; ++j) acc[r][j] = V::zero_ints();
  for (int64_t k = 0, stop = 0; k < p.depth; ++k) {
    if (k == stop) {
      stop += kDepthAtOnce;
      if (p.beside) p.beside->some_lines();
    }
    decltype(V::load_pairs(nullptr)) b[N];
    LC_UNROLL for (int j = 0; j < N; ++j) b[j] = V::load_pairs(p.b + k * p.b_row + V::kLanes * j);
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const auto a = V::broadcast_pair(p.a[r * p.a_row + k * p.a_column]);
      LC_UNROLL for (int j = 0; j < N; ++j) V::dot_pairs(acc[r][j], a, b[j]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < N; ++j) {
    float* c = p.c + r * p.c_row + V::kLanes * j;
    V::store(c, V::multiply_add(V::broadcast(p.scales[r * p.scales_stride]), V::to_floats(acc[r][j]), V::load(c)));
  }
}

template <class Product>
using TileFunction = void (*)(const Product& product);

// The tiles of 1 to sizeof...(I) rows.
template <class Product, int N, int... I>
constexpr TileFunction<Product> kTiles[] = {tile<I + 1, N>...};

// Computes all whole column tiles from `column` on, and returns the first column after them. A panel of B, one register
// tile wide, stays in the cache for all rows. Rows are split evenly, so that every tile is wide enough to fill the
// pipelines.
template <int N, class Product, int... I>
int64_t walk(const Product& product, int64_t column, std::integer_sequence<int, I...>) {
  constexpr int64_t kColumns = N * V::kLanes, kMost = sizeof...(I);
  constexpr bool kIsExact = std::is_same_v<Product, Int16Product>;  // then one sum over all k
  const int64_t depth = !kIsExact ? vec::least(kPanelDepth, product.depth) : product.depth;
  for (; column + kColumns <= product.columns; column += kColumns)
    for (int64_t k = 0; k < product.depth; k += depth) {
      Product part = product;
      part.depth = vec::least(depth, product.depth - k);
      part.b += k * product.b_row + column;
      int64_t tiles = (product.rows + kMost - 1) / kMost;
      for (int64_t row = 0; row < product.rows; --tiles) {
        const int64_t rows = (product.rows - row + tiles - 1) / tiles;
        part.c = product.c + row * product.c_row + column;
        part.a = product.a + row * product.a_row + k * product.a_column;
        if constexpr (kIsExact) part.scales = product.scales + row * product.scales_stride;
        kTiles<Product, N, I...>[rows - 1](part);
        row += rows;
      }
    }
  return column;
}

// Up to kRows rows times N registers of sums, N registers of B and one value of A fit in the registers.
template <class Product>
void multiply(const Product& product) {
#if defined(__AVX512VNNI__)
  constexpr auto kRows = std::make_integer_sequence<int, 8>();
  walk<1>(product, walk<2>(product, 0, kRows), kRows);
#elif defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
  walk<2>(product, 0, std::make_integer_sequence<int, 6>());
#else
  walk<1>(product, 0, std::make_integer_sequence<int, 2>());
#endif
}

#if defined(__AVX512BF16__)
constexpr auto kBf16s = multiply<Bf16Product>;
#else
constexpr decltype(ProductKernels::bf16s) kBf16s = nullptr;
#endif

}  // namespace

template <>
const ProductKernels& table_of<ProductKernels, Isa::LC_ISA>() {
  static constexpr ProductKernels kTable{
      .floats = multiply<FloatProduct>, .bf16s = kBf16s, .int16s = multiply<Int16Product>};
  return kTable;
}

}  // namespace longcat::cpu

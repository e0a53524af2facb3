#include "cpu/attention/index_kernels.h"

#include <cstring>
#include <utility>

#include "cpu/attention/round_to_levels.h"
#include "cpu/simd/registers.h"
#include "ops/batch.h"

namespace longcat::cpu {

namespace {

using V = vec::Register;

// Keys at once times registers of heads: the sums, the queries and a value of a key fit in the registers.
#if defined(__AVX512VNNI__)
constexpr int kKeys = 8, kRegisters = 1;
#elif defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int kKeys = 6, kRegisters = 2;
#else
constexpr int kKeys = 2, kRegisters = 1;
#endif
constexpr int kColumns = kRegisters * V::kLanes;

float round_key(int8_t* out, const float* key, int64_t n) {
  return round_to_levels(out, key, n, Int8IndexKey::kLevels);
}

// 127 * 257: the high byte of a query, rounded to nearest, has 8 bits as well.
float round_query(int16_t* out, const float* query, int64_t n) {
  constexpr float kQueryLevels = 32639;
  return round_to_levels(out, query, n, kQueryLevels);
}

void widen_key(Int16Pair* pairs, const int8_t* values, int64_t n) {
  int16_t* const wide = &pairs->first;
  for (int64_t k = 0; k < n; ++k) wide[k] = values[k];
  if (n % 2) wide[n] = 0;
}

template <class Value>
LC_INLINE const char* key_of(const IndexScores<Value>& p, int64_t s) {
  return static_cast<const char*>(p.keys) + s * p.key_bytes;
}

template <class Value>
LC_INLINE float scale_of(const IndexScores<Value>& p, int64_t s) {
  float scale;
  std::memcpy(&scale, static_cast<const char*>(p.scales) + s * p.scale_bytes, sizeof(scale));
  return scale;
}

// Prefetches a part of the keys after these at each step along k. Without a branch: one more in the loop would make its
// end unpredictable. All at once, they would keep the loads of these keys waiting.
class Ahead {
 public:
  template <class Value>
  LC_INLINE Ahead(const IndexScores<Value>& p, int64_t first, int keys)
      : next_(p.ahead + first * p.ahead_key_bytes), bytes_(keys * p.ahead_step) {}

  LC_INLINE void step() {
    __builtin_prefetch(next_);
    next_ += bytes_;
  }

 private:
  const char* next_;
  int64_t bytes_;
};

// The products of R keys with the heads from `lane` on.
template <int R>
using Products = V::Floats[R][kRegisters];

template <int R>
LC_INLINE void multiply(Products<R>& acc, const IndexScores<float>& p, int64_t first, int64_t lane) {
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < kRegisters; ++j) acc[r][j] = V::zero();
  const float* const keys = reinterpret_cast<const float*>(key_of(p, first));
  const float* queries = p.queries + lane;
  const int64_t depth = p.depth, lanes = p.lanes, key_stride = p.key_bytes / 4;
  Ahead ahead(p, first, R);
  for (int64_t k = 0; k < depth; ++k, queries += lanes) {
    ahead.step();
    V::Floats q[kRegisters];
    LC_UNROLL for (int j = 0; j < kRegisters; ++j) q[j] = V::load(queries + V::kLanes * j);
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const V::Floats key = V::broadcast(keys[r * key_stride + k]);
      LC_UNROLL for (int j = 0; j < kRegisters; ++j) acc[r][j] = V::multiply_add(key, q[j], acc[r][j]);
    }
  }
}

template <int R>
LC_INLINE void multiply(Products<R>& acc, const IndexScores<Int16Pair>& p, int64_t first, int64_t lane) {
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < kRegisters; ++j) acc[r][j] = V::zero();
  const Int16Pair* const keys = reinterpret_cast<const Int16Pair*>(key_of(p, first));
  const Int16Pair* queries = p.queries + lane;
  const int64_t lanes = p.lanes, key_stride = p.key_bytes / 4;
  Ahead ahead(p, first, R);
  for (int64_t begin = 0; begin < p.depth; begin += kIndexGroup / 2) {
    const int64_t end = vec::least(begin + kIndexGroup / 2, p.depth);
    V::Ints sum[R][kRegisters];
    LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int j = 0; j < kRegisters; ++j) sum[r][j] = V::zero_ints();
    for (int64_t k = begin; k < end; ++k, queries += lanes) {
      ahead.step();
      decltype(V::load_pairs(nullptr)) q[kRegisters];
      LC_UNROLL for (int j = 0; j < kRegisters; ++j) q[j] = V::load_pairs(queries + V::kLanes * j);
      LC_UNROLL for (int r = 0; r < R; ++r) {
        const auto key = V::broadcast_pair(keys[r * key_stride + k]);
        LC_UNROLL for (int j = 0; j < kRegisters; ++j) V::dot_pairs(sum[r][j], key, q[j]);
      }
    }
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const V::Floats scale = V::broadcast(scale_of(p, first + r));
      LC_UNROLL for (int j = 0; j < kRegisters; ++j) acc[r][j] =
          V::multiply_add(scale, V::to_floats(sum[r][j]), acc[r][j]);
    }
  }
}

#if defined(__AVX512VNNI__)
// The sums of high and low bytes: 256 * high + low is that of 16-bit queries.
template <int R>
LC_INLINE void multiply(Products<R>& acc, const IndexScores<Int8Quad>& p, int64_t first, int64_t lane) {
  V::Ints high[R], low[R];
  LC_UNROLL for (int r = 0; r < R; ++r) {
    high[r] = V::load_ints(p.begin + lane);
    low[r] = V::load_ints(p.begin + p.lanes + lane);
  }
  const int8_t* const keys = reinterpret_cast<const int8_t*>(key_of(p, first));
  const Int8Quad* queries = p.queries + lane;
  const int64_t depth = p.depth, lanes = p.lanes, key_stride = p.key_bytes;
  Ahead ahead(p, first, R);
  for (int64_t k = 0; k < depth; ++k, queries += 2 * lanes) {
    ahead.step();
    const V::Bytes q_high = V::load_ints(queries), q_low = V::load_ints(queries + lanes);
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const V::Bytes key = V::int8_weights(V::broadcast4(keys + r * key_stride + 4 * k));
      V::dot_int8(high[r], key, q_high);
      V::dot_int8(low[r], key, q_low);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = V::multiply_add(
      V::broadcast(scale_of(p, first + r)), V::to_floats(V::add(V::shift_left(high[r], 8), low[r])), V::zero());
}
#endif

#if defined(__AVX512BF16__)
template <int R>
LC_INLINE void multiply(Products<R>& acc, const IndexScores<Bf16Pair>& p, int64_t first, int64_t lane) {
  LC_UNROLL for (int r = 0; r < R; ++r) acc[r][0] = V::zero();
  const int8_t* const keys = reinterpret_cast<const int8_t*>(key_of(p, first));
  const Bf16Pair* queries = p.queries + lane;
  const int64_t depth = p.depth, lanes = p.lanes, key_stride = p.key_bytes;
  Ahead ahead(p, first, R);
  for (int64_t k = 0; k < depth; ++k, queries += lanes) {
    ahead.step();
    const V::Bytes q = V::load_ints(queries);
    LC_UNROLL for (int r = 0; r < R; ++r) acc[r][0] =
        V::dot_bf16(acc[r][0], q, V::broadcast4(keys + r * key_stride + 4 * k));
  }
}
#endif

// The scores of R keys.
template <int R, class Value>
void score_tile(const IndexScores<Value>& scores, int64_t first) {
  const IndexScores<Value> p = scores;  // a copy in registers, which no store can change
  vec::f32x8 sums[8] = {};              // of every eighth head
  for (int64_t lane = 0; lane < p.lanes; lane += kColumns) {
    Products<R> products;
    multiply<R>(products, p, first, lane);
    LC_UNROLL for (int i = 0; i < kColumns / vec::kLanes; ++i) {
      constexpr int kEights = V::kLanes / vec::kLanes;
      const vec::f32x8 weights = vec::load(p.weights + lane + vec::kLanes * i);
      LC_UNROLL for (int r = 0; r < R; ++r) sums[r] +=
          weights * vec::max(V::eight(products[r][i / kEights], i % kEights), vec::f32x8{});
    }
  }
  float out[8];
  vec::store(out, vec::sum_lanes(sums));
  std::memcpy(p.scores + first, out, R * sizeof(float));
}

// The tiles of 1 to sizeof...(I) keys.
template <class Value, int... I>
constexpr void (*kTiles[])(const IndexScores<Value>& scores, int64_t first) = {score_tile<I + 1, Value>...};

// Keys are split evenly, so that every tile is large enough to fill the pipelines.
template <class Value, int... I>
LC_INLINE void score_tiles(const IndexScores<Value>& p, std::integer_sequence<int, I...>) {
  constexpr int64_t kMost = sizeof...(I);
  int64_t tiles = (p.num_keys + kMost - 1) / kMost;
  for (int64_t first = 0; first < p.num_keys; --tiles) {
    const int64_t keys = (p.num_keys - first + tiles - 1) / tiles;
    kTiles<Value, I...>[keys - 1](p, first);
    first += keys;
  }
}

template <class Value>
void score(const IndexScores<Value>& scores) {
  score_tiles(scores, std::make_integer_sequence<int, kKeys>());
}

#if defined(__AVX512BF16__)
constexpr auto kScoreBf16s = score<Bf16Pair>;
#else
constexpr decltype(IndexKernels::bf16s) kScoreBf16s = nullptr;
#endif
#if defined(__AVX512VNNI__)
constexpr auto kScoreBytes = score<Int8Quad>;
#else
constexpr decltype(IndexKernels::bytes) kScoreBytes = nullptr;
#endif

}  // namespace

template <>
const IndexKernels& table_of<IndexKernels, Isa::LC_ISA>() {
  static constexpr IndexKernels kTable{.round_key = round_key,
                                       .round_query = round_query,
                                       .widen_key = widen_key,
                                       .floats = score<float>,
                                       .int16s = score<Int16Pair>,
                                       .bf16s = kScoreBf16s,
                                       .bytes = kScoreBytes};
  return kTable;
}

}  // namespace longcat::cpu

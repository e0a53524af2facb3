#include "tests/native/kernel_bits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "cpu/attention/index_kernels.h"
#include "cpu/attention/latent_kernels.h"
#include "cpu/attention/latents.h"
#include "cpu/attention/softmax_kernels.h"
#include "cpu/gemm/dot_kernels.h"
#include "cpu/gemm/pack.h"
#include "cpu/gemm/packed_matmul.h"
#include "cpu/gemm/product_kernels.h"
#include "cpu/gemm/scale_kernels.h"
#include "cpu/row_kernels.h"
#include "ops/packed.h"
#if defined(__x86_64__) && defined(__linux__)
#include "tests/native/trapped_instructions.h"
#endif

namespace longcat {

namespace {

using namespace cpu;

// The bits of all results of a set, by kernel.
class Results {
 public:
  template <class T>
  void add(const std::string& kernel, const T* values, size_t count) {
    std::vector<uint32_t>& bits = by_kernel_[kernel];
    for (size_t i = 0; i < count; ++i) {
      uint32_t value = 0;
      std::memcpy(&value, values + i, sizeof(T));
      if constexpr (std::is_same_v<T, float>)
        if (std::isnan(values[i])) value = 0x7fc00000;  // a NaN has no sign
      bits.push_back(value);
    }
  }
  template <class T>
  void add(const std::string& kernel, const std::vector<T>& values) {
    add(kernel, values.data(), values.size());
  }
  const std::map<std::string, std::vector<uint32_t>>& by_kernel() const { return by_kernel_; }

 private:
  std::map<std::string, std::vector<uint32_t>> by_kernel_;
};

// The same values on every machine, unlike std::normal_distribution.
class Values {
 public:
  int64_t integer(int64_t below) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(below)); }
  // Bell-shaped around 0, of magnitude 1.
  float value() {
    int64_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += integer(1 << 20) - (1 << 19);
    return static_cast<float>(sum) / (1 << 19);
  }
  std::vector<float> floats(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = value();
    return values;
  }
  std::vector<Int16Pair> pairs(int64_t count, int16_t below) {
    std::vector<Int16Pair> values(static_cast<size_t>(count));
    const auto one = [&] { return static_cast<int16_t>(integer(2 * below - 1) - below + 1); };
    for (Int16Pair& p : values) p = {one(), one()};
    return values;
  }

 private:
  std::mt19937_64 engine_{7};
};

// The functions below take fewer sizes where each instruction is emulated by itself.
using Sizes = std::vector<int64_t>;

template <bool few>
void add_packed(Results& results, Isa isa) {
  const PackedKernels& kernels = table_of<PackedKernels>(isa);
  ThreadPool pool(1);
  QuantizedInputs quantized;
  Values random;
  for (const int64_t in : few ? Sizes{1, 33, 70} : Sizes{1, 2, 31, 32, 33, 63, 64, 65, 70, 257, 520, 1101})
    for (const int64_t out : few ? Sizes{7, 16, 40} : Sizes{1, 7, 8, 9, 16, 17, 24, 31, 40, 64, 72, 89}) {
      const std::vector<float> matrix = random.floats(out * in);
      for (const auto& [format, name] :
           {std::pair{WeightFormat::bf16_x8, "packed bf16"}, std::pair{WeightFormat::int8_x8, "packed int8"},
            std::pair{WeightFormat::int4_x8, "packed int4"}, std::pair{WeightFormat::int8_x8_f16, "packed int8, f16"},
            std::pair{WeightFormat::int4_x8_f16, "packed int4, f16"}}) {
        std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(format, out, in)));
        pack(pool, packed.data(), format, out, in,
             [&](int64_t row, float* to) { std::copy_n(matrix.data() + row * in, in, to); });
        const Weight weight{.format = format, .out_features = out, .in_features = in, .data = packed.data()};
        for (const int64_t count : few ? Sizes{1, 2, 3, 4, 5, 9} : Sizes{1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 131}) {
          if (count > 100 && (out > 24 || in > 70)) continue;  // chunks of inputs
          const std::vector<float> x = random.floats(count * in);
          quantized.quantize(pool, x.data(), in, count, in, kernels);
          std::vector<float> y(static_cast<size_t>(count * out), -1.0f);
          packed_matmul_block(weight,
                              {.out = y.data(),
                               .out_stride = out,
                               .x = x.data(),
                               .x_stride = in,
                               .row_idx = nullptr,
                               .num_inputs = count,
                               .first_row = 0,
                               .num_rows = out,
                               .quantized = &quantized},
                              kernels);
          results.add(name, y);
        }
      }
    }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t n : {1, 31, 32, 33, 64, 70, 520, 2101})
    for (const float odd : {0.0f, 1e-42f, 3e38f, -kInfinity, std::nanf("")}) {
      std::vector<float> x = random.floats(n);
      x[static_cast<size_t>(random.integer(n))] = odd;
      std::vector<int8_t> values(static_cast<size_t>(num_quant_blocks(n) * kQuantBlock));
      std::vector<InputBlock> blocks(static_cast<size_t>(num_quant_blocks(n)));
      kernels.quantize_row(values.data(), blocks.data(), x.data(), n);
      for (size_t b = 0; b < blocks.size(); ++b) {
        results.add("inputs in 8 bits", &blocks[b].scale, 1);
        if (std::isfinite(blocks[b].scale)) {
          results.add("inputs in 8 bits", &blocks[b].sum_by_8, 1);
          results.add("inputs in 8 bits", values.data() + b * kQuantBlock, static_cast<size_t>(kQuantBlock));
        }
      }
    }
}

void add_dots(Results& results, Isa isa) {
  const DotKernels& kernels = table_of<DotKernels>(isa);
  Values random;
  for (const int64_t in : {1, 15, 16, 17, 64, 100, 331, 512, 513, 1200})
    for (const int64_t out : {1, 3, 4, 5, 12, 29})
      for (const int64_t count : {1, 2, 3, 4, 5, 6, 11}) {
        if (in > 331 && (out > 5 || count > 5)) continue;  // chunks of columns
        const std::vector<float> rows = random.floats(out * in), x = random.floats(count * in);
        std::vector<bf16> short_rows;
        for (const float value : rows) short_rows.push_back(to_bf16(value));
        std::vector<float> y(static_cast<size_t>(count * out));
        const auto dots = [&]<class W>(const W* from) {
          return Dots<W, float>{.out = y.data(),
                                .out_stride = out,
                                .rows = from,
                                .row_stride = in,
                                .num_rows = out,
                                .x = x.data(),
                                .x_stride = in,
                                .row_idx = nullptr,
                                .num_inputs = count,
                                .begin = 0,
                                .end = in};
        };
        kernels.few_f32(dots(rows.data()));
        results.add("dot products", y);
        kernels.few_bf16(dots(short_rows.data()));
        results.add("dot products", y);
        Dots<float, float> chunk = dots(rows.data());
        for (; chunk.begin < in; chunk.begin = chunk.end) {
          chunk.rows = rows.data() + chunk.begin;
          chunk.end = std::min(chunk.begin + kF32Chunk, in);
          kernels.many(chunk);
        }
        results.add("dot products", y);
      }
}

template <bool few>
void add_products(Results& results, Isa isa) {
  const ProductKernels& kernels = table_of<ProductKernels>(isa);
  Values random;
  for (const int64_t rows : few ? Sizes{1, 7, 13} : Sizes{1, 2, 3, 5, 6, 7, 13, 64})
    for (const int64_t columns : few ? Sizes{16, 48} : Sizes{16, 32, 48, 80})
      for (const int64_t depth : few ? Sizes{1, 65, 193} : Sizes{1, 2, 63, 64, 65, 128, 193, 500}) {
        const std::vector<float> a = random.floats(rows * depth), b = random.floats(depth * columns),
                                 scales = random.floats(rows), before = random.floats(rows * columns);
        std::vector<float> c = before;
        kernels.floats({.c = c.data(),
                        .c_row = columns,
                        .a = a.data(),
                        .a_row = depth,
                        .a_column = 1,
                        .b = b.data(),
                        .b_row = columns,
                        .rows = rows,
                        .columns = columns,
                        .depth = depth});
        results.add("float products", c);
        const std::vector<Int16Pair> short_a = random.pairs(rows * depth, 8191),
                                     short_b = random.pairs(depth * columns, 127);
        c = before;
        kernels.int16s({.c = c.data(),
                        .c_row = columns,
                        .a = short_a.data(),
                        .a_row = depth,
                        .a_column = 1,
                        .scales = scales.data(),
                        .scales_stride = 1,
                        .b = short_b.data(),
                        .b_row = columns,
                        .rows = rows,
                        .columns = columns,
                        .depth = depth});
        results.add("int16 products", c);
      }
}

void add_rows(Results& results, Isa isa) {
  const RowKernels& rows = table_of<RowKernels>(isa);
  const ScaleKernels& scales = table_of<ScaleKernels>(isa);
  Values random;
  for (const int64_t n : {1, 7, 8, 9, 16, 63, 64, 65, 100, 576, 3073}) {
    const std::vector<float> x = random.floats(n);
    std::vector<float> y = random.floats(n);
    rows.add_scaled(y.data(), random.value(), x.data(), n);
    results.add("rows", y);
    for (const float result : {rows.largest(x.data(), n), rows.sum_of_squares(x.data(), n)})
      results.add("rows", &result, 1);
    std::vector<bf16> stored;
    for (const float value : x) stored.push_back(to_bf16(value));
    rows.widen_bf16(y.data(), stored.data(), n);
    results.add("rows", y);
    float largest = 0;
    for (const float value : x) largest = std::max(largest, std::abs(value));
    const float scale = scales.int4_row(x.data(), n, largest);
    results.add("scales", &scale, 1);
  }
  for (int i = 0; i < 200; ++i) {
    const bf16 scale = scales.int4_block(random.floats(kQuantBlock).data());
    results.add("scales", &scale.bits, 1);
  }
}

void add_softmax(Results& results, Isa isa) {
  const SoftmaxKernels& kernels = table_of<SoftmaxKernels>(isa);
  Values random;
  for (const int64_t keys : {1, 2, 63, 64})
    for (const int64_t lanes : {16, 48}) {
      std::vector<float> scores = random.floats(keys * lanes), max = random.floats(lanes), sum = random.floats(lanes);
      for (float& score : scores) score *= 30;
      std::vector<float> keep(static_cast<size_t>(lanes)), acc = random.floats(lanes * 40);
      scores[0] = kNothing;
      max[1] = kNothing;
      scores[2] = std::nanf("");
      kernels.add_scores(scores.data(), keys, lanes, max.data(), sum.data(), keep.data());
      kernels.keep_rows(acc.data(), lanes, 40, keep.data());
      for (const std::vector<float>* values : {&scores, &max, &sum, &keep, &acc}) results.add("softmax", *values);
    }
}

void add_latents(Results& results, Isa isa) {
  const LatentKernels& kernels = table_of<LatentKernels>(isa);
  Values random;
  for (const auto& [rank, rope] : {std::pair<int64_t, int64_t>{512, 64}, {16, 4}, {129, 2}, {31, 8}}) {
    const Int8Latent layout{rank, rope};
    const int64_t pairs = (rank + 1) / 2 + rope / 2;
    std::vector<float> values = random.floats(rank + rope);
    std::vector<uint8_t> row(static_cast<size_t>(layout.row_bytes()));
    kernels.pack_int8(row.data(), values.data(), layout);
    results.add("latents", row);
    kernels.unpack_int8(values.data(), row.data(), layout);
    results.add("latents", values);
    std::vector<Int16Pair> wide(static_cast<size_t>(pairs));
    kernels.widen_int8(wide.data(), row.data(), layout);
    results.add("latents", wide);

    const LatentShape shape{5, rank, rope};
    const std::vector<float> latent = random.floats(5 * rank), rotated = random.floats(5 * rope);
    std::vector<Int16Pair> queries(static_cast<size_t>(pairs * shape.lanes()));
    std::vector<float> scales(static_cast<size_t>(shape.lanes())), space(static_cast<size_t>((2 + 5) * pairs));
    kernels.round_queries(queries.data(), scales.data(), {latent.data(), rotated.data(), rank, rope}, shape, 0.07f,
                          pairs, space.data());
    results.add("latents", queries);
    results.add("latents", scales);
  }
  for (const int64_t n : {1, 2, 63, 64}) {
    std::vector<float> weights = random.floats(n * 32), scales = random.floats(n), lane_scales(32);
    for (std::vector<float>* values : {&weights, &scales})
      for (float& value : *values) value = std::abs(value);
    std::vector<Int16Pair> rounded(static_cast<size_t>((n + 1) / 2 * 32));
    kernels.round_weights(rounded.data(), lane_scales.data(), weights.data(), scales.data(), 1, n, 32);
    results.add("latents", rounded);
    results.add("latents", lane_scales);
    kernels.scale_lanes(weights.data(), lane_scales.data(), n, 32);
    results.add("latents", weights);
  }
}

// The same products of integers, by bytes where the set multiplies those.
void add_integer_scores(Results& results, const IndexKernels& kernels, Values& random, int64_t num_keys, int64_t dim,
                        int64_t lanes) {
  const std::vector<float> weights = random.floats(lanes), scales = random.floats(num_keys);
  std::vector<int8_t> keys(static_cast<size_t>(num_keys * dim));
  for (int8_t& value : keys) value = static_cast<int8_t>(random.integer(255) - 127);
  std::vector<Int16Pair> wide(static_cast<size_t>(num_keys * dim / 2)), queries(static_cast<size_t>(dim / 2 * lanes));
  kernels.widen_key(wide.data(), keys.data(), num_keys * dim);
  for (Int16Pair& pair : queries)
    for (int16_t* value : {&pair.first, &pair.second})
      *value = static_cast<int16_t>(random.integer(8) == 0 ? 32639 : random.integer(2 * 32639 + 1) - 32639);
  std::vector<float> scores(static_cast<size_t>(num_keys));
  kernels.int16s({.scores = scores.data(),
                  .keys = wide.data(),
                  .key_bytes = 2 * dim,
                  .scales = scales.data(),
                  .scale_bytes = 4,
                  .queries = queries.data(),
                  .weights = weights.data(),
                  .num_keys = num_keys,
                  .depth = dim / 2,
                  .lanes = lanes});
  results.add("index scores of integers", scores);
  if (kernels.bytes && dim % 4 == 0 && dim <= kIndexGroup) {
    std::vector<Int8Quad> bytes(queries.size());
    std::vector<int32_t> begin(static_cast<size_t>(2 * lanes));
    split_query(bytes.data(), begin.data(), queries.data(), dim / 4, lanes);
    kernels.bytes({.scores = scores.data(),
                   .keys = keys.data(),
                   .key_bytes = dim,
                   .scales = scales.data(),
                   .scale_bytes = 4,
                   .queries = bytes.data(),
                   .weights = weights.data(),
                   .num_keys = num_keys,
                   .depth = dim / 4,
                   .lanes = lanes,
                   .begin = begin.data()});
  }
  results.add("index scores of bytes", scores);
}

template <bool few>
void add_index_scores(Results& results, Isa isa) {
  const IndexKernels& kernels = table_of<IndexKernels>(isa);
  Values random;
  for (const int64_t num_keys : few ? Sizes{1, 31} : Sizes{1, 2, 31, 32})
    for (const int64_t lanes : {16, 48})
      for (const int64_t dim : few ? Sizes{2, 10, 128} : Sizes{2, 10, 128, 512, 1100}) {
        add_integer_scores(results, kernels, random, num_keys, dim, lanes);
        const std::vector<float> keys = random.floats(num_keys * dim), queries = random.floats(dim * lanes),
                                 weights = random.floats(lanes);
        std::vector<float> scores(static_cast<size_t>(num_keys));
        kernels.floats({.scores = scores.data(),
                        .keys = keys.data(),
                        .key_bytes = 4 * dim,
                        .scales = nullptr,
                        .scale_bytes = 0,
                        .queries = queries.data(),
                        .weights = weights.data(),
                        .num_keys = num_keys,
                        .depth = dim,
                        .lanes = lanes});
        results.add("index scores of floats", scores);
      }
}

void compare(std::vector<KernelBits>& out, std::span<const Isa> sets, void (*add)(Results& results, Isa isa)) {
  Results reference;
  add(reference, sets.front());
  for (const Isa isa : sets.subspan(1)) {
    Results results;
    add(results, isa);
    for (const auto& [kernel, bits] : results.by_kernel()) {
      KernelBits row{.set = name_of(isa), .reference = name_of(sets.front()), .kernel = kernel};
      const std::vector<uint32_t>& expected = reference.by_kernel().at(kernel);
      row.values = std::ssize(bits);
      row.differences = std::abs(std::ssize(bits) - std::ssize(expected));
      for (size_t i = 0; i < std::min(bits.size(), expected.size()); ++i) row.differences += bits[i] != expected[i];
      out.push_back(row);
    }
  }
}

}  // namespace

std::vector<KernelBits> compare_instruction_sets() {
  std::vector<KernelBits> rows;
  const std::span<const Isa> sets = isas_of_this_machine();
  compare(rows, sets, add_packed<false>);
#if defined(__x86_64__)
  const std::span<const Isa> fused = sets.subspan(1);  // `portable` has no fused multiply-adds
#else
  const std::span<const Isa> fused = sets;
#endif
  if (fused.empty()) return rows;
  for (const auto add : {add_products<false>, add_index_scores<false>, add_dots, add_rows, add_softmax, add_latents})
    compare(rows, fused, add);
#if defined(__x86_64__) && defined(__linux__)
  if (std::find(sets.begin(), sets.end(), Isa::avx_vnni) == sets.end()) {
    const TrappedInstructions traps;
    constexpr Isa kSets[] = {Isa::avx2, Isa::avx_vnni};
    for (const auto add :
         {add_packed<true>, add_products<true>, add_index_scores<true>, add_dots, add_rows, add_softmax, add_latents})
      compare(rows, kSets, add);
  }
#endif
  return rows;
}

}  // namespace longcat

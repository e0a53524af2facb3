// Checks what must be equal bit for bit on a GPU of compute capability 9.0. The invariance contract (ops.h) rests on
// it, and so does every kernel that the CPU proves by a model of the tensor cores:
//   1. bf16 products by mma.sync, by the product's wgmma kernels, and by the model of their arithmetic are equal.
//   2. Rows of a layer do not depend on the number of rows, nor rows of an expert on the rows of other experts.
//   3. cp.async and ldmatrix bring every value to the place that the PTX ISA names.
// Without a GPU, the model is compared with exact sums and with cases worked out by hand, and the rows come from the
// emulated device.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "cuda/emulation/hopper.h"
#include "probes.h"
#include "suites.h"

namespace longcat {

namespace {

constexpr int64_t kTokenCounts[] = {1, 16, 17, 64, 65, 128, 129};
constexpr int64_t kMostTokens = 129;

// --- inputs of (1) ---------------------------------------------------------------------------------

struct Range {
  int low, high;  // exponents, spread evenly; -127: subnormal numbers
};
struct Inputs {
  const char* name;
  Range x, w;
  double zeros;  // share of values that are zero
  bool pairs;    // every second product along K nearly cancels the one before it
};
constexpr Inputs kInputs[] = {
    {"exponents -2 to 2", {-2, 2}, {-2, 2}, 0, false},
    {"exponents -40 to 40", {-40, 40}, {-40, 40}, 0, false},
    {"large beside small", {-30, 30}, {-1, 1}, 0.2, false},
    {"half of them zeros", {-4, 4}, {-4, 4}, 0.5, false},
    {"subnormal numbers", {-127, -124}, {100, 120}, 0.1, false},
    {"subnormal results", {-75, -58}, {-75, -58}, 0, false},
    {"sums that cancel", {-20, 20}, {-2, 2}, 0, true},
};

bf16 random_value(std::mt19937& random, Range range, double zeros) {
  const auto uniform = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const uint16_t sign = uniform(0, 1) ? 0x8000 : 0;
  if (std::uniform_real_distribution<double>()(random) < zeros) return {sign};
  return {static_cast<uint16_t>(sign | (uniform(range.low, range.high) + 127) << 7 | uniform(0, 127))};
}

// In each pair the second value equals the first, or differs in the last bit.
std::vector<bf16> random_matrix(std::mt19937& random, const Inputs& inputs, Range range, int64_t rows, int64_t cols) {
  std::vector<bf16> values(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = random_value(random, range, inputs.zeros);
    if (inputs.pairs && i % 2 == 1) values[i].bits = static_cast<uint16_t>(values[i - 1].bits ^ (random() % 8 == 0));
  }
  return values;
}

std::vector<bf16> random_x(std::mt19937& random, const Inputs& inputs, int64_t rows, int64_t cols) {
  return random_matrix(random, inputs, inputs.x, rows, cols);
}

// In each pair the second value has the opposite sign, so that the two products nearly cancel.
std::vector<bf16> random_w(std::mt19937& random, const Inputs& inputs, int64_t rows, int64_t cols) {
  std::vector<bf16> values = random_matrix(random, inputs, inputs.w, rows, cols);
  for (size_t i = 1; inputs.pairs && i < values.size(); i += 2) values[i].bits ^= 0x8000;
  return values;
}

// --- the suite -------------------------------------------------------------------------------------

class BitsBench {
 public:
  explicit BitsBench(Bench& bench) : b_(bench) {}

  bool run() {
    std::printf("\n| check | values | differ | first difference | |\n| --- | --- | --- | --- | --- |\n");
    model_by_hand();
    model_beside_exact_sums();
    products();
    for (const int64_t width : widths()) {
      dense(width, DType::f32);
      dense(width, DType::bf16);
      dense_fp8(width);
      grouped(width, false);
      grouped(width, true);
    }
    tile();
    std::printf("\n%ld checks, %ld wrong, %ld skipped\n", num_checks_, num_wrong_, num_skipped_);
    return num_wrong_ == 0;
  }

 private:
  // The K of the products to check: those of o_proj and the FFN, or on the emulated device sizes that it walks in
  // seconds.
  std::vector<int64_t> widths() const {
    return b_.check() ? std::vector<int64_t>{128} : std::vector<int64_t>{6144, 3072};
  }

  // --- results -------------------------------------------------------------------------------------

  void result(const std::string& what, int64_t values, int64_t differ, const std::string& first) {
    ++num_checks_;
    num_wrong_ += differ > 0;
    std::printf("| %s | %ld | %ld | %s | %s |\n", what.c_str(), values, differ, first.c_str(),
                differ > 0 ? "WRONG" : "ok");
    std::fflush(stdout);
  }

  void skipped(const std::string& what, const std::string& why) {
    ++num_skipped_;
    std::printf("| %s | - | - | %s | skipped |\n", what.c_str(), why.c_str());
    std::fflush(stdout);
  }

  // Rows of `cols` values.
  template <class T>
  void compare(const std::string& what, const std::vector<T>& found, const std::vector<T>& expected, int64_t cols) {
    LC_CHECK(found.size() == expected.size(), what);
    int64_t differ = 0;
    std::string first;
    for (size_t i = 0; i < found.size(); ++i) {
      if (std::memcmp(&found[i], &expected[i], sizeof(T)) == 0) continue;
      if (differ++ > 0) continue;
      char text[120];
      std::snprintf(text, sizeof(text), "row %ld, column %ld: %a, expected %a", static_cast<int64_t>(i) / cols,
                    static_cast<int64_t>(i) % cols, static_cast<double>(to_float(found[i])),
                    static_cast<double>(to_float(expected[i])));
      first = text;
    }
    result(what, static_cast<int64_t>(found.size()), differ, first);
  }

  // --- memory --------------------------------------------------------------------------------------

  template <class T>
  Buffer on_device(const std::vector<T>& values) {
    Buffer buffer(b_.device(), static_cast<int64_t>(values.size() * sizeof(T)));
    b_.device().copy_from_host(buffer.data(), values.data(), buffer.bytes());
    return buffer;
  }

  template <class T>
  std::vector<T> from_device(const void* data, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    b_.device().copy_to_host(values.data(), data, count * static_cast<int64_t>(sizeof(T)));
    return values;
  }

  // --- 1: arithmetic -------------------------------------------------------------------------------

  void model_by_hand() {
    struct Case {
      float c;
      std::vector<float> products;  // each product is 1 times such a value
      float expected;
    };
    const std::vector<Case> cases = {
        {0, {1, 2, 3}, 6},
        {1, {0x1p-25f}, 1},  // the product keeps this bit, and the f32 sum cuts it off
        {1, {0x1p-25f, 0x1p-25f, 0x1p-25f, 0x1p-25f}, 1 + 0x1p-23f},  // four of them together reach the last bit
        {1, std::vector<float>(16, 0x1p-26f), 1},                     // each alone is cut off
        {1, std::vector<float>(16, -0x1p-26f), 1},                    // towards zero
        {1, {0x1p-24f, 0x1p-25f}, 1},                                 // rounding would go up
        {-1, {-0x1p-24f, -0x1p-25f}, -1},
        {0, {0x1p30f, -0x1p30f, 1}, 0},  // 1 is below the 25th bit of 2^30
        {0, {0x1p30f, -0x1p30f, 0x1p5f}, 0x1p5f},
        {0x1p30f, {-0x1p30f, 0x1p4f, 0x1p5f}, 0x1p5f},
        {0x1p-149f, {}, 0x1p-149f},  // subnormal numbers stay
        {0x1p-127f, {0x1p-127f}, 0x1p-126f},
    };
    std::vector<float> found, expected;
    for (const Case& one : cases) {
      bf16 a[16] = {}, ones[16];
      std::fill(ones, ones + 16, to_bf16(1));
      std::transform(one.products.begin(), one.products.end(), a, to_bf16);
      found.push_back(hopper_dot(a, ones, one.c));
      expected.push_back(one.expected);
    }
    compare("model of the arithmetic: by hand", found, expected, 1);
  }

  // Each of 17 terms loses less than a 25th bit of the largest, and the sum loses less than its last bit.
  void model_beside_exact_sums() {
    std::mt19937 random(1);
    int64_t differ = 0, values = 0;
    std::string first;
    for (const Inputs& inputs : kInputs)
      for (int i = 0; i < 2000; ++i, ++values) {
        const std::vector<bf16> a = random_x(random, inputs, 1, 16), b = random_w(random, inputs, 1, 16);
        const float c = to_float(a[0]) * to_float(b[1]);
        // Subnormal numbers have the exponent of the smallest normal one.
        const auto aligned = [](bf16 x) { return std::max<long double>(std::fabs(to_float(x)), 0x1p-126L); };
        long double exact = c, largest = std::max(std::fabs(c), 0x1p-126f);
        for (size_t k = 0; k < 16; ++k) {
          const long double product = static_cast<long double>(to_float(a[k])) * to_float(b[k]);
          exact += product;
          if (product != 0) largest = std::max(largest, aligned(a[k]) * aligned(b[k]));
        }
        const long double found = hopper_dot(a.data(), b.data(), c);
        const long double bound = 17 * largest * 0x1p-25L + std::fabs(exact) * 0x1p-22L + 0x1p-149L;
        if (std::fabs(found - exact) <= bound) continue;
        if (differ++ > 0) continue;
        first = str_cat(inputs.name, ", case ", i, ": ", static_cast<double>(found), ", expected ",
                        static_cast<double>(exact));
      }
    result("model of the arithmetic: beside exact sums", values, differ, first);
  }

  void products() {
    const std::string why = b_.check() ? "no GPU" : "the device is not of 9.0";
    const bool possible = !b_.check() && b_.device().compute_capability() == 90;
    constexpr int64_t kOut = 128, kIn = 256;
    std::mt19937 random(2);
    for (const Inputs& inputs : kInputs) {
      const std::string name = std::string(", ") + inputs.name;
      if (!possible) {
        skipped("mma.sync = model" + name, why);
        skipped("wgmma = mma.sync" + name, why);
        continue;
      }
      const std::vector<bf16> x = random_x(random, inputs, kMostTokens, kIn), w = random_w(random, inputs, kOut, kIn);
      std::vector<float> model;
      for (int64_t t = 0; t < kMostTokens; ++t)
        for (int64_t o = 0; o < kOut; ++o) model.push_back(hopper_chain(&x[t * kIn], &w[o * kIn], kIn));
      const Buffer x_buffer = on_device(x), w_buffer = on_device(w), out(b_.device(), kMostTokens * kOut * 4);
      b_.run([&] {
        mma_sync_linear(b_.device(), static_cast<float*>(out.data()), static_cast<const bf16*>(x_buffer.data()),
                        static_cast<const bf16*>(w_buffer.data()), kMostTokens, kOut, kIn);
      });
      const std::vector<float> mma = from_device<float>(out.data(), kMostTokens * kOut);
      compare("mma.sync = model" + name, mma, model, kOut);
      const Weight weight{
          .format = WeightFormat::bf16, .out_features = kOut, .in_features = kIn, .data = w_buffer.data()};
      std::vector<float> found, expected;
      for (const int64_t tokens : kTokenCounts) {  // one for each width of a tile
        b_.run([&] {
          b_.ops().linear(out.tensor(DType::f32, {tokens, kOut}), x_buffer.tensor(DType::bf16, {tokens, kIn}), weight);
        });
        const std::vector<float> rows = from_device<float>(out.data(), tokens * kOut);
        found.insert(found.end(), rows.begin(), rows.end());
        expected.insert(expected.end(), mma.begin(), mma.begin() + tokens * kOut);
      }
      compare("wgmma = mma.sync" + name, found, expected, kOut);
    }
  }

  // --- 2: rows -------------------------------------------------------------------------------------

  // Compares the rows of fewer tokens with the same rows of the most tokens.
  template <class T>
  void compare_rows(const std::string& what, const Weight& weight, int64_t width) {
    constexpr DType kDType = sizeof(T) == 4 ? DType::f32 : DType::bf16;
    const int64_t out_features = weight.out_features;
    const Buffer x = b_.random(kMostTokens * width * 2), out(b_.device(), kMostTokens * out_features * 4);
    const auto rows = [&](int64_t tokens) {
      b_.run([&] {
        b_.ops().linear(out.tensor(kDType, {tokens, out_features}), x.tensor(DType::bf16, {tokens, width}), weight);
      });
      return from_device<T>(out.data(), tokens * out_features);
    };
    const std::vector<T> all = rows(kMostTokens);
    std::vector<T> found, expected;
    for (const int64_t tokens : kTokenCounts) {
      const std::vector<T> few = rows(tokens);
      found.insert(found.end(), few.begin(), few.end());
      expected.insert(expected.end(), all.begin(), all.begin() + tokens * out_features);
    }
    compare(str_cat(what, ", K = ", width, ": rows of 1 to 128 tokens = of 129"), found, expected, out_features);
  }

  void dense(int64_t width, DType out_dtype) {
    Buffer storage;
    const Weight weight = b_.matrix(storage, 256, width);
    if (out_dtype == DType::f32) return compare_rows<float>("bf16 layer to f32", weight, width);
    compare_rows<bf16>("bf16 layer", weight, width);
  }

  Weight fp8_matrix(Buffer& storage, int64_t out_features, int64_t in_features) {
    Buffer plane;
    Weight logical = b_.matrix(plane, out_features, in_features);
    const std::vector<char> host = from_device<char>(plane.data(), plane.bytes());
    logical.data = host.data();
    return b_.ops().quantize_fp8(logical, storage);
  }

  void dense_fp8(int64_t width) {
    Buffer storage;
    compare_rows<bf16>("fp8 layer", fp8_matrix(storage, 256, width), width);
  }

  // Experts get 0 to 129 rows, always of the same tokens, among enough other experts to select each width of a tile.
  // Each row is compared with the same row when its expert has 129 rows and all others none.
  void grouped(int64_t width, bool fp8) {
    const std::vector<int64_t> counts = {0, 1, 16, 17, 64, 65, 127, 128, 129};
    const int64_t used = static_cast<int64_t>(counts.size()), ffn = b_.check() ? 128 : 256;
    std::vector<Buffer> storage(static_cast<size_t>(3 * used));
    Experts experts{.x = b_.random(kMostTokens * width * 2), .width = width, .ffn = ffn};
    for (int64_t e = 0; e < used; ++e)
      for (int64_t which = 0; which < 3; ++which) {
        Buffer& plane = storage[static_cast<size_t>(3 * e + which)];
        const int64_t out = which == 2 ? width : ffn, in = which == 2 ? ffn : width;
        experts.matrices[which].push_back(fp8 ? fp8_matrix(plane, out, in) : b_.matrix(plane, out, in));
      }
    std::vector<std::vector<bf16>> alone;
    for (int64_t e = 0; e < used; ++e) {
      std::vector<int64_t> only(counts.size(), 0);
      only[static_cast<size_t>(e)] = kMostTokens;
      alone.push_back(expert_rows(experts, only, 1));
    }
    // 129 x 9 rows in the buffers, spread over 9, 36 or 99 experts: this selects tiles of 128, 64 and 16
    for (const int64_t spacing : {1, 4, 11}) {
      const std::vector<bf16> found = expert_rows(experts, counts, spacing);
      std::vector<bf16> expected;
      for (size_t e = 0; e < counts.size(); ++e)
        expected.insert(expected.end(), alone[e].begin(), alone[e].begin() + counts[e] * width);
      compare(str_cat(fp8 ? "fp8" : "bf16", " experts, K = ", width, ": of 0 to 129 rows, among ", used * spacing),
              found, expected, width);
    }
  }

  struct Experts {
    Buffer x;  // [129, width] bf16
    int64_t width, ffn;
    std::vector<Weight> matrices[3] = {};  // gate, up, down
  };

  // Returns the experts' outputs before they are summed. Expert number e * spacing gets the first counts[e] tokens; the
  // experts between get none.
  std::vector<bf16> expert_rows(const Experts& experts, const std::vector<int64_t>& counts, int64_t spacing) {
    const int64_t picks = static_cast<int64_t>(counts.size()), num_experts = picks * spacing,
                  rows = kMostTokens * picks;
    std::vector<int32_t> offsets(static_cast<size_t>(num_experts) + 1), tokens(static_cast<size_t>(rows));
    std::vector<Weight> spread[3];
    for (int64_t e = 0; e < num_experts; ++e) {
      const size_t own = static_cast<size_t>(e / spacing);
      const int64_t count = e % spacing == 0 ? counts[own] : 0;
      for (int64_t i = 0; i < count; ++i) tokens[static_cast<size_t>(offsets[e] + i)] = static_cast<int32_t>(i);
      offsets[static_cast<size_t>(e) + 1] = offsets[static_cast<size_t>(e)] + static_cast<int32_t>(count);
      for (int which = 0; which < 3; ++which) spread[which].push_back(experts.matrices[which][own]);
    }
    // No token picks an expert, so that nothing is summed.
    const std::vector<int32_t> none(static_cast<size_t>(rows), -1);
    const Buffer offset_buffer = on_device(offsets), token_buffer = on_device(tokens), none_buffer = on_device(none);
    const Buffer weights(b_.device(), rows * 4), identity(b_.device(), kMostTokens * 4);
    const Routing routing{.expert_idx = none_buffer.tensor(DType::i32, {kMostTokens, picks}),
                          .expert_weights = weights.tensor(DType::f32, {kMostTokens, picks}),
                          .identity_weight = identity.tensor(DType::f32, {kMostTokens}),
                          .expert_offsets = offset_buffer.tensor(DType::i32, {num_experts + 1}),
                          .permuted_tokens = token_buffer.tensor(DType::i32, {rows}),
                          .permuted_rows = none_buffer.tensor(DType::i32, {kMostTokens, picks})};
    const Buffer gate(b_.device(), rows * experts.ffn * 2), up(b_.device(), rows * experts.ffn * 2),
        expert_out(b_.device(), rows * experts.width * 2), out(b_.device(), kMostTokens * experts.width * 2);
    b_.run([&] {
      b_.ops().moe_experts(out.tensor(DType::bf16, {kMostTokens, experts.width}),
                           gate.tensor(DType::bf16, {rows, experts.ffn}), up.tensor(DType::bf16, {rows, experts.ffn}),
                           expert_out.tensor(DType::bf16, {rows, experts.width}),
                           experts.x.tensor(DType::bf16, {kMostTokens, experts.width}), routing,
                           {.gate_proj = spread[0], .up_proj = spread[1], .down_proj = spread[2]});
    });
    return from_device<bf16>(expert_out.data(), offsets.back() * experts.width);
  }

  // --- 3: a tile -----------------------------------------------------------------------------------

  void tile() {
    const std::string what = str_cat("a tile of ", kProbeRows, " x ", kProbeCols, " by cp.async and ldmatrix");
    if (b_.check()) {
      skipped(what, "no GPU");
      skipped(what + ".trans", "no GPU");
      return;
    }
    constexpr int64_t kCount = kProbeRows * kProbeCols;
    std::vector<bf16> values;
    for (int64_t i = 0; i < kCount; ++i) values.push_back({static_cast<uint16_t>(i)});  // all values differ
    const Buffer from = on_device(values), plain(b_.device(), kCount * 2), transposed(b_.device(), kCount * 2);
    b_.run([&] {
      read_tile(b_.device(), static_cast<bf16*>(plain.data()), static_cast<bf16*>(transposed.data()),
                static_cast<const bf16*>(from.data()));
    });
    compare(what, from_device<bf16>(plain.data(), kCount), values, kProbeCols);
    compare(what + ".trans", from_device<bf16>(transposed.data(), kCount), values, kProbeCols);
  }

  Bench& b_;
  int64_t num_checks_ = 0, num_wrong_ = 0, num_skipped_ = 0;
};

}  // namespace

bool check_bits(Bench& bench) { return BitsBench(bench).run(); }

}  // namespace longcat

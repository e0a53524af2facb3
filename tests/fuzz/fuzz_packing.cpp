// Hostile matrices to what `longcat convert` calls: packing floats, packing integers with scales of their own, reading
// packed bytes back. Each case is made from its number and the seed. All buffers have their exact size, so that ASan
// sees one byte too many.
//
// fuzz_packing [--seconds N] [--seed S] runs until its time is over or a promise is broken; fuzz_packing --seed S
// --case N repeats one case.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/gemm/pack.h"
#include "cpu/gemm/scale_kernels.h"
#include "model/weight_slice.h"
#include "ops/packed.h"
#include "ops/packed_scan.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace longcat::fuzz {
namespace {

uint64_t seed_number = 1, case_number = 0;
uint64_t num_cases = 0, num_rejected = 0, num_values = 0;

void say_case() {
  std::fprintf(stderr, "case %llu; repeat it with: fuzz_packing --seed %llu --case %llu\n",
               static_cast<unsigned long long>(case_number), static_cast<unsigned long long>(seed_number),
               static_cast<unsigned long long>(case_number));
}

template <class... Args>
void require(bool condition, const Args&... promise) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", str_cat(promise...).c_str());
  say_case();
  std::_Exit(1);
}

struct Random {
  std::mt19937_64 engine;

  uint64_t below(uint64_t bound) { return engine() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  float normal() { return std::normal_distribution<float>()(engine); }
  uint32_t bits() { return static_cast<uint32_t>(engine()); }
};

struct Shape {
  int64_t rows, cols;
  int64_t count() const { return rows * cols; }
};

// --- random input ----------------------------------------------------------------------------------------------------

constexpr WeightFormat kFormats[] = {WeightFormat::bf16_x8,     WeightFormat::int8_x8,     WeightFormat::int4_x8,
                                     WeightFormat::int8_x8_f16, WeightFormat::int4_x8_f16, WeightFormat::int8_row,
                                     WeightFormat::int4_row,    WeightFormat::int8_b32,    WeightFormat::int4_b32,
                                     WeightFormat::fp8_row};

// Groups, blocks and parts of a thread that are empty, full, or one short or too long.
Shape random_shape(Random& random) {
  const int64_t around = static_cast<int64_t>(random.below(3)) - 1;
  int64_t rows = 1 + static_cast<int64_t>(random.below(24)), cols = 1 + static_cast<int64_t>(random.below(100));
  if (random.one_in(2)) cols = 32 * (1 + static_cast<int64_t>(random.below(4))) + around;
  if (random.one_in(8)) rows = 64 * (1 + static_cast<int64_t>(random.below(2))) + around;
  if (random.one_in(50)) rows = 0;
  if (random.one_in(50)) cols = 2048 + around * 53;
  return {rows, cols};
}

float any_finite(Random& random) {
  const uint32_t bits = random.bits();
  return std::bit_cast<float>((bits & 0x7f800000u) == 0x7f800000u ? bits ^ 0x40000000u : bits);
}

// A row of finite values of one kind.
void fill_row(float* x, int64_t n, Random& random) {
  constexpr float kMagnitudes[] = {1e-45f, 1e-40f, 1e-30f, 6e-8f, 6e-5f, 1, 65504, 1e15f, 1e19f, 1e30f, 3e38f};
  const uint64_t kind = random.below(8);
  const float magnitude = kMagnitudes[random.below(std::size(kMagnitudes))];
  for (int64_t k = 0; k < n; ++k) {
    const float sign = random.one_in(2) ? 1.0f : -1.0f;
    switch (kind) {
      case 0:
      case 1:
        x[k] = random.normal();
        break;
      case 2:  // every exponent
        x[k] = any_finite(random);
        break;
      case 3:  // ties between integers
        x[k] = 0.5f * static_cast<float>(static_cast<int64_t>(random.below(31)) - 15);
        break;
      case 4:
        x[k] = sign * magnitude;
        break;
      case 5:
        x[k] = std::clamp(random.normal() / 8, -1.0f, 1.0f) * magnitude;
        break;
      case 6:  // one large value among zeros or small ones
        x[k] = random.one_in(static_cast<uint64_t>(n)) ? sign * magnitude : random.one_in(2) ? 0 : 1e-3f * magnitude;
        break;
      default:
        x[k] = 0;
    }
  }
}

float hostile(Random& random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kMost = std::numeric_limits<float>::max();
  const float values[] = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, kMost, -kMost,
                          std::bit_cast<float>(0x7f7f7fffu),       65504,     65505,      65520, 1e-45f};
  return values[random.below(std::size(values))];
}

// Memory of an exact size.
template <class T>
std::unique_ptr<T[]> exactly(int64_t count) {
  return std::make_unique<T[]>(static_cast<size_t>(count));
}

// --- what a format promises ------------------------------------------------------------------------------------------

struct Packed {
  WeightFormat format;
  Shape shape;
  std::unique_ptr<uint8_t[]> data;

  Packed(WeightFormat format_, Shape shape_) : format(format_), shape(shape_), data(exactly<uint8_t>(bytes())) {}
  int64_t bytes() const { return packed_bytes(format, shape.rows, shape.cols); }
  int64_t units() const { return is_x8(format) ? num_packed_groups(shape.rows) : shape.rows; }
  Weight weight() const {
    return {.format = format, .out_features = shape.rows, .in_features = shape.cols, .data = data.get()};
  }
};

std::unique_ptr<float[]> unpacked(const Weight& weight) {
  auto values = exactly<float>(weight.out_features * weight.in_features);
  auto row_values = exactly<float>(weight.in_features);
  for (int64_t row = 0; row < weight.out_features; ++row) {
    unpack_row(row_values.get(), weight, row);
    std::copy_n(row_values.get(), weight.in_features, values.get() + row * weight.in_features);
  }
  return values;
}

// The same bytes with rows and columns up to the end of their group and block.
void check_padding(const Packed& packed) {
  Weight whole = packed.weight();
  const int64_t unit = packed.format == WeightFormat::bf16_x8 ? 2
                       : is_x8(packed.format)                 ? kQuantBlock
                       : is_int4(packed.format)               ? 2
                                                              : 1;
  whole.in_features = (whole.in_features + unit - 1) / unit * unit;
  if (is_x8(packed.format)) whole.out_features = num_packed_groups(whole.out_features) * kPackedRows;
  require(whole.num_bytes() == packed.bytes(), "padding takes no bytes");
  const auto values = unpacked(whole);
  for (int64_t row = 0; row < whole.out_features; ++row)
    for (int64_t col = row < packed.shape.rows ? packed.shape.cols : 0; col < whole.in_features; ++col)
      require(values[static_cast<size_t>(row * whole.in_features + col)] == 0, name_of(packed.format),
              ": padding is zero at row ", row, ", column ", col);
}

// The largest magnitude that `pack` takes.
float most_of(WeightFormat format) {
  if (has_half_scales(format)) return 65504;
  return format == WeightFormat::bf16_x8 ? std::bit_cast<float>(0x7f7f7fffu) : 0x1p127f;
}

// Values of one scale: x as given and y as packed.
void check_scaled(WeightFormat format, const float* x, const float* y, int64_t n) {
  double most = 0, error = 0, sum = 0;
  for (int64_t k = 0; k < n; ++k) {
    const double e = std::abs(static_cast<double>(y[k]) - x[k]);
    require(std::isfinite(y[k]), name_of(format), ": ", x[k], " is packed as ", y[k]);
    most = std::max(most, std::abs(static_cast<double>(x[k])));
    error = std::max(error, e);
    sum += e * e;
  }
  // The rounding of the scale itself, where it is subnormal in its type.
  const bool has_blocks = is_int_x8(format) || is_b32(format);
  const double least = has_half_scales(format) ? 0x1p-24 : has_blocks ? 0x1p-133 : 0x1p-149;
  const double scale_error = has_blocks ? 0x1p-8 : 1e-6;
  if (format == WeightFormat::fp8_row) {
    for (int64_t k = 0; k < n; ++k) {
      const double value = std::abs(static_cast<double>(x[k]));
      require(
          std::abs(static_cast<double>(y[k]) - x[k]) <= 1.0001 * std::max(value / 16, most / 448 / 1024) + 448 * least,
          name_of(format), ": ", x[k], " is packed as ", y[k], ", the largest is ", most);
    }
  } else if (!is_int4(format)) {
    require(error <= most * (0.501 / 127 + scale_error) + 127 * least, name_of(format), ": error ", error, " of ",
            most);
  } else {
    // The searched scale is no worse than one that maps the largest to 7, or to nearly that. Squares of very large and
    // very small errors leave the range of floats, and then the search knows less.
    const bool in_range = most > 1e-15 && most < 1e15;
    const double step = most * (in_range ? 1.01 / 14 + 8 * scale_error : 0.27);
    require(std::sqrt(sum) <= std::sqrt(static_cast<double>(n)) * (step + 10 * least), name_of(format),
            ": the errors of ", n, " values are ", std::sqrt(sum / static_cast<double>(n)), ", the largest is ", most);
  }
}

void check_values(const Packed& packed, const float* x) {
  const auto y = unpacked(packed.weight());
  const int64_t n = packed.shape.cols;
  for (int64_t row = 0; row < packed.shape.rows; ++row) {
    const float *from = x + row * n, *to = y.get() + row * n;
    if (packed.format == WeightFormat::bf16_x8) {
      for (int64_t k = 0; k < n; ++k)
        require(to_bf16(from[k]).bits == to_bf16(to[k]).bits, "bf16_x8: ", from[k], " is packed as ", to[k]);
      continue;
    }
    const int64_t step = is_int_x8(packed.format) || is_b32(packed.format) ? kQuantBlock : n;
    for (int64_t k = 0; k < n; k += step) check_scaled(packed.format, from + k, to + k, std::min(step, n - k));
  }
}

// --- cases -----------------------------------------------------------------------------------------------------------

ThreadPool& pool(int num_threads) {
  static ThreadPool one(1), three(3);
  return num_threads == 1 ? one : three;
}

void pack_floats(WeightFormat format, Shape shape, Random& random) {
  auto values = exactly<float>(shape.count());
  for (int64_t row = 0; row < shape.rows; ++row) fill_row(values.get() + row * shape.cols, shape.cols, random);
  const float most = most_of(format);
  for (int64_t i = 0; i < shape.count(); ++i)
    values[static_cast<size_t>(i)] = std::clamp(values[static_cast<size_t>(i)], -most, most);
  if (shape.rows && random.one_in(4)) values[random.below(static_cast<uint64_t>(shape.count()))] = hostile(random);
  const bool fits =
      std::all_of(values.get(), values.get() + shape.count(), [&](float x) { return std::abs(x) <= most; });
  const auto read = [&](int64_t row, float* out) { std::copy_n(values.get() + row * shape.cols, shape.cols, out); };
  Packed packed(format, shape), again(format, shape);
  std::memset(again.data.get(), 0xa5, static_cast<size_t>(again.bytes()));
  try {
    cpu::pack(pool(1), packed.data.get(), format, shape.rows, shape.cols, read);
    cpu::pack(pool(3), again.data.get(), format, shape.rows, shape.cols, read);
    require(fits, name_of(format), " takes a value above ", most);
  } catch (const Error& error) {
    require(!fits, name_of(format), " refuses finite values: ", error.what());
    require(std::string(error.what()).find("expected a finite value") != std::string::npos, error.what());
    ++num_rejected;
    return;
  }
  require(std::equal(packed.data.get(), packed.data.get() + packed.bytes(), again.data.get()), name_of(format),
          ": every byte is written, the same by any number of threads");
  require(first_not_finite(packed.data.get(), packed.units(), format, shape.cols) == -1, "what is packed is finite");
  check_values(packed, values.get());
  check_padding(packed);
}

void pack_integers(WeightFormat format, Shape shape, Random& random) {
  const int64_t blocks = num_quant_blocks(shape.cols);
  auto q = exactly<int8_t>(shape.count());
  auto scales = exactly<uint16_t>(shape.rows * blocks);
  const int least = is_int4(format) ? -8 : -128, range = is_int4(format) ? 16 : 256;
  for (int64_t i = 0; i < shape.count(); ++i)
    q[static_cast<size_t>(i)] =
        static_cast<int8_t>(least + static_cast<int>(random.below(static_cast<uint64_t>(range))));
  const uint16_t exponent = has_half_scales(format) ? 0x7c00 : 0x7f80;
  for (int64_t i = 0; i < shape.rows * blocks; ++i) {
    const uint16_t bits = static_cast<uint16_t>(random.bits());
    scales[static_cast<size_t>(i)] = (bits & exponent) == exponent ? bits ^ 0x4000 : bits;
  }
  const bool takes_format = is_int_x8(format) || is_b32(format);
  bool fits = true;
  if (shape.rows && random.one_in(6)) {
    scales[random.below(static_cast<uint64_t>(shape.rows * blocks))] |= exponent;
    fits = false;
  }
  if (shape.rows && is_int4(format) && random.one_in(6)) {
    q[random.below(static_cast<uint64_t>(shape.count()))] = random.one_in(2) ? int8_t{8} : int8_t{-128};
    fits = false;
  }
  Packed packed(format, shape);
  std::memset(packed.data.get(), 0xa5, static_cast<size_t>(packed.bytes()));
  try {
    cpu::pack_grid(pool(random.one_in(2) ? 1 : 3), packed.data.get(), format, shape.rows, shape.cols, q.get(),
                   scales.get());
    require(fits && takes_format, name_of(format), " takes integers or scales out of range");
  } catch (const std::exception& error) {
    require(!fits || !takes_format, name_of(format), " refuses integers and scales: ", error.what());
    ++num_rejected;
    return;
  }
  const auto y = unpacked(packed.weight());
  for (int64_t i = 0; i < shape.count(); ++i) {
    const int64_t row = i / shape.cols, col = i % shape.cols;
    const float scale = scale_value(format, scales[static_cast<size_t>(row * blocks + col / kQuantBlock)]);
    const float expected = scale * static_cast<float>(q[static_cast<size_t>(i)]);
    require(y[static_cast<size_t>(i)] == expected, name_of(format), ": ", expected, " is packed as ",
            y[static_cast<size_t>(i)]);
  }
  require(first_not_finite(packed.data.get(), packed.units(), format, shape.cols) == -1, "what is packed is finite");
  check_padding(packed);
}

void pack_any_bf16(Shape shape, Random& random) {
  auto bits = exactly<bf16>(shape.count());
  for (int64_t i = 0; i < shape.count(); ++i) bits[static_cast<size_t>(i)].bits = static_cast<uint16_t>(random.bits());
  const Weight rows{
      .format = WeightFormat::bf16, .out_features = shape.rows, .in_features = shape.cols, .data = bits.get()};
  Packed packed(WeightFormat::bf16_x8, shape);
  const int64_t groups = packed.units(), half = groups / 2;
  cpu::pack_bf16(packed.data.get(), rows, 0, half);
  cpu::pack_bf16(packed.data.get(), rows, half, groups);
  const auto y = unpacked(packed.weight());
  for (int64_t i = 0; i < shape.count(); ++i)
    require(std::bit_cast<uint32_t>(y[static_cast<size_t>(i)]) >> 16 == bits[static_cast<size_t>(i)].bits,
            "bf16_x8 keeps every bf16, NaN too");
  check_padding(packed);
}

// Bytes of a file that may be damaged, at any address: what the scan lets pass has no NaN. A cut has the same values.
void read_any_bytes(WeightFormat format, Shape shape, Random& random) {
  const int64_t offset = static_cast<int64_t>(random.below(64)), bytes = packed_bytes(format, shape.rows, shape.cols);
  auto memory = exactly<uint8_t>(offset + bytes);
  for (int64_t i = 0; i < bytes; ++i) memory[static_cast<size_t>(offset + i)] = static_cast<uint8_t>(random.bits());
  const uint8_t* data = memory.get() + offset;
  const Weight weight{.format = format, .out_features = shape.rows, .in_features = shape.cols, .data = data};
  const int64_t units = is_x8(format) ? num_packed_groups(shape.rows) : shape.rows;
  const int64_t found = first_not_finite(data, units, format, shape.cols);
  require(found >= -1 && found < std::max<int64_t>(units, 1), "the scan names a group or a row");
  const auto y = unpacked(weight);
  const int64_t sound = (found < 0 ? units : found) * (is_x8(format) ? kPackedRows : 1);
  for (int64_t i = 0; i < std::min(sound, shape.rows) * shape.cols; ++i)
    require(!std::isnan(y[static_cast<size_t>(i)]), name_of(format), ": the scan passes a NaN");

  if (!is_x8(format) || !shape.rows) return;
  const int64_t unit = format == WeightFormat::bf16_x8 ? 2 : kQuantBlock;
  const auto cut = [&](int64_t total, int64_t step) {
    const int64_t parts = (total + step - 1) / step;
    const int64_t begin = static_cast<int64_t>(random.below(static_cast<uint64_t>(parts)));
    const int64_t end = begin + 1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(parts - begin)));
    return Range{begin * step, std::min(total, end * step)};
  };
  const Range rows = cut(shape.rows, kPackedRows), cols = cut(shape.cols, unit);
  std::unique_ptr<std::byte[]> storage;
  const auto part = unpacked(slice_of(weight, rows, cols, "matrix", storage));
  for (int64_t row = 0; row < rows.size(); ++row)
    require(!std::memcmp(part.get() + row * cols.size(), y.get() + (rows.begin + row) * shape.cols + cols.begin,
                         static_cast<size_t>(cols.size()) * sizeof(float)),
            name_of(format), ": a part has the values of the whole");
}

// The searches of every instruction set of this machine.
void search_scales(Random& random) {
  const int64_t n = 1 + static_cast<int64_t>(random.below(70));
  auto x = exactly<float>(std::max(n, kQuantBlock));
  fill_row(x.get(), std::max(n, kQuantBlock), random);
  float block_most = 0, row_most = 0;
  for (int64_t k = 0; k < kQuantBlock; ++k) block_most = std::max(block_most, std::abs(x[static_cast<size_t>(k)]));
  for (int64_t k = 0; k < n; ++k) row_most = std::max(row_most, std::abs(x[static_cast<size_t>(k)]));
  auto row = exactly<float>(n);
  std::copy_n(x.get(), n, row.get());
  for (const Isa isa : isas_of_this_machine()) {
    const cpu::ScaleKernels& search = cpu::table_of<cpu::ScaleKernels>(isa);
    const double of_block = std::abs(static_cast<double>(to_float(search.int4_block(x.get())))),
                 of_row = search.int4_row(row.get(), n, row_most);
    require(of_block <= block_most / 6.0 + 0x1p-133 && of_block * 10 >= block_most - 10 * 0x1p-133, name_of(isa),
            ": the scale of a block is ", of_block, ", the largest is ", block_most);
    require(of_row <= row_most / 5.9 + 0x1p-149 && of_row * 9.1 >= row_most - 10 * 0x1p-149, name_of(isa),
            ": the scale of a row is ", of_row, ", the largest is ", row_most);
  }
}

void run_case(uint64_t number) {
  case_number = number;
  Random random{std::mt19937_64(seed_number * 0x9e3779b97f4a7c15u + number)};
  const WeightFormat format = kFormats[random.below(std::size(kFormats))];
  const Shape shape = random_shape(random);
  switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
    case 3:
      pack_floats(format, shape, random);
      break;
    case 4:
    case 5:
      pack_integers(format, shape, random);
      break;
    case 6:
      read_any_bytes(format, shape, random);
      break;
    default:
      random.one_in(2) ? pack_any_bf16(shape, random) : search_scales(random);
  }
  ++num_cases;
  num_values += static_cast<uint64_t>(shape.count());
}

}  // namespace
}  // namespace longcat::fuzz

int main(int argc, char** argv) {
  using namespace longcat::fuzz;
  using Clock = std::chrono::steady_clock;
  double seconds = 10;
  const char* one = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--seconds")) seconds = std::atof(argv[i + 1]);
    if (!std::strcmp(argv[i], "--seed")) seed_number = std::strtoull(argv[i + 1], nullptr, 10);
    if (!std::strcmp(argv[i], "--case")) one = argv[i + 1];
  }
  __sanitizer_set_death_callback(say_case);
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  if (one) {
    run_case(std::strtoull(one, nullptr, 10));
  } else {
    for (uint64_t number = 0; Clock::now() < end; ++number) run_case(number);
  }
  std::printf("seed %llu: %llu matrices packed or read, %llu of them refused, %llu values, no fault\n",
              static_cast<unsigned long long>(seed_number), static_cast<unsigned long long>(num_cases),
              static_cast<unsigned long long>(num_rejected), static_cast<unsigned long long>(num_values));
}

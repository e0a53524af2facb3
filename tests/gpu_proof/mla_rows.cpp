// The proof of cuda/kernels/mla_rows.h: MLA decode over lists of positions, against float64. Tokens without a list have
// the bits of decode without lists.
#include "cuda/kernels/mla_rows.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/mla_selected.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SelectedBf16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SelectedFp8&, bool);

namespace longcat::emulation {

namespace {

constexpr int kHeads = 16, kLora = 512, kRope = 64, kDim = kLora + kRope;
constexpr Fp8Latent kLayout{kLora, kRope};
constexpr double kTolerance = 6e-3;  // as of mla_decode.cpp
constexpr float kScale = 0.0721688f;

// Consecutive tokens of one sequence.
struct Chunk {
  int sequence, first, count;
};
struct Setup {
  std::vector<Chunk> chunks;
  int topk;
  int watched = 0;   // the row whose bits are compared
  int round = 1000;  // tokens of a launch
  bool only_selecting = false;
};

// Of fp8 latents, the values are codes with the scale 1 / 4 (group 0) to 1 (group 3).
float scale_of(int group) { return 0.25f * static_cast<float>(1 + group); }
std::vector<unsigned char> stored_row(int sequence, int position, bool fp8) {
  const std::vector<bf16> values = random_bf16(kDim, static_cast<uint64_t>(sequence * 10000 + position), 0.5f);
  std::vector<unsigned char> row(fp8 ? kLayout.row_bytes() : kDim * 2);
  if (!fp8) {
    std::memcpy(row.data(), values.data(), row.size());
    return row;
  }
  for (int k = 0; k < kLora; ++k) row[k] = to_e4m3(to_float(values[k]));
  for (int g = 0; g < 4; ++g) {
    const float scale = scale_of(g);
    std::memcpy(&row[kLayout.scales_offset() + 4 * g], &scale, 4);
  }
  std::memcpy(&row[kLayout.rope_offset()], &values[kLora], kRope * 2);
  return row;
}
std::vector<double> values_of(const std::vector<unsigned char>& row, bool fp8) {
  std::vector<double> values(kDim);
  for (int k = 0; k < kDim; ++k) {
    if (fp8 && k < kLora) {
      values[k] = e4m3_to_float(row[k]) * scale_of(k / 128);
      continue;
    }
    bf16 plain;
    std::memcpy(&plain, &row[fp8 ? kLayout.rope_offset() + 2 * (k - kLora) : 2 * k], 2);
    values[k] = to_float(plain);
  }
  return values;
}
std::vector<bf16> query_of(int sequence, int position) {
  return random_bf16(kHeads * kDim, static_cast<uint64_t>(1'000'000 + sequence * 10000 + position));
}
// topk ascending positions up to `position`: all but some that lie far apart.
std::vector<int32_t> list_of(int position, int topk) {
  std::vector<int32_t> list;
  const int left_out = position + 1 - topk;
  for (int32_t p = 0, skipped = 0; p <= position; ++p) {
    if (skipped < left_out && p % 3 == position % 2) {
      ++skipped;
    } else if (static_cast<int>(list.size()) < topk) {
      list.push_back(p);
    }
  }
  return list;
}

// [kHeads, kLora] in f64; the same for all cases.
const std::vector<double>& expected(int sequence, int position, int topk, bool fp8) {
  static std::map<std::tuple<int, int, int, bool>, std::vector<double>> known;
  std::vector<double>& out = known[{sequence, position, topk, fp8}];
  if (!out.empty()) return out;
  out.resize(kHeads * kLora);
  std::vector<std::vector<double>> rows;
  for (const int32_t p : list_of(position, std::min(topk, position + 1)))
    rows.push_back(values_of(stored_row(sequence, p, fp8), fp8));
  const std::vector<bf16> query = query_of(sequence, position);
  for (int head = 0; head < kHeads; ++head) {
    std::vector<double> weights;
    double total = 0;
    for (const std::vector<double>& row : rows) {
      double score = 0;
      for (int k = 0; k < kDim; ++k) score += to_float(query[head * kDim + k]) * row[k];
      weights.push_back(std::exp(score * kScale));
      total += weights.back();
    }
    for (size_t i = 0; i < rows.size(); ++i)
      for (int k = 0; k < kLora; ++k) out[head * kLora + k] += weights[i] / total * rows[i][k];
  }
  return out;
}

template <class Kernel>
Outcome run(SimtEmulator& gpu, const Setup& setup) {
  using Dense = gpu::MlaDecode<Kernel::kFp8 ? DType::f8_e4m3 : DType::bf16, kHeads>;
  constexpr bool kFp8 = Kernel::kFp8;
  std::vector<int32_t> positions, sequence_idx, query_starts = {0}, sequences, block_tables, lists;
  std::vector<bf16> queries;
  int longest = 0, blocks = 1;
  const int stride = setup.topk + 3;
  for (const Chunk& chunk : setup.chunks) longest = std::max(longest, chunk.first + chunk.count);
  const int64_t table_stride = (longest + 63) / 64 + 1, block_bytes = 64 * Kernel::kRowBytes + 1024;
  for (const Chunk& chunk : setup.chunks) {
    for (int p = chunk.first; p < chunk.first + chunk.count; ++p) {
      positions.push_back(p);
      sequence_idx.push_back(static_cast<int32_t>(sequences.size()));
      const std::vector<bf16> query = query_of(chunk.sequence, p);
      queries.insert(queries.end(), query.begin(), query.end());
      std::vector<int32_t> list = p < setup.topk ? std::vector<int32_t>() : list_of(p, setup.topk);
      list.resize(static_cast<size_t>(stride), 1 << 30);  // nonsense
      lists.insert(lists.end(), list.begin(), list.end());
    }
    sequences.push_back(chunk.sequence);
    query_starts.push_back(static_cast<int32_t>(positions.size()));
    const int count = (chunk.first + chunk.count + 63) / 64;
    for (int i = 0; i < table_stride; ++i) block_tables.push_back(i < count ? blocks + count - 1 - i : 0);
    blocks += count;
  }
  std::vector<unsigned char> latents(static_cast<size_t>(blocks * block_bytes), 0xff);  // NaN
  for (size_t s = 0; s < setup.chunks.size(); ++s)
    for (int p = 0; p < setup.chunks[s].first + setup.chunks[s].count; ++p) {
      const std::vector<unsigned char> row = stored_row(setup.chunks[s].sequence, p, kFp8);
      const int64_t block = block_tables[s * static_cast<size_t>(table_stride) + static_cast<size_t>(p / 64)];
      std::copy(row.begin(), row.end(),
                &latents[static_cast<size_t>(block * block_bytes + p % 64 * Kernel::kRowBytes)]);
    }

  const int32_t num_tokens = static_cast<int32_t>(positions.size());
  const int32_t num_pieces = static_cast<int32_t>(num_kv_pieces(longest));
  const int64_t slots = std::min(num_tokens, setup.round) * num_pieces;
  const bf16* const query = gpu.input(queries);
  const auto attend = [&](auto kernel, bool selects) {
    kernel.tokens = {.positions = written(gpu, positions),
                     .sequence_idx = gpu.input(sequence_idx),
                     .query_starts = gpu.input(query_starts),
                     .plan = gpu.output<int32_t>(num_tokens + 2),
                     .num_tokens = num_tokens,
                     .round = setup.round,
                     .topk = selects ? setup.topk : 0,
                     .only_selecting = selects && setup.only_selecting};
    kernel.q_latent = query;
    kernel.q_rope = query + kLora;
    kernel.out = gpu.buffer(std::vector<bf16>(static_cast<size_t>(num_tokens * kHeads * kLora)));
    kernel.q_latent_strides[0] = kernel.q_rope_strides[0] = kHeads * kDim;
    kernel.q_latent_strides[1] = kernel.q_rope_strides[1] = kDim;
    kernel.out_strides[0] = kHeads * kLora;
    kernel.out_strides[1] = kLora;
    kernel.latents = gpu.input(latents);
    kernel.block_bytes = block_bytes;
    kernel.block_tables = gpu.input(block_tables);
    kernel.block_table_stride = table_stride;
    kernel.head_blocks = 1;
    kernel.num_pieces = num_pieces;
    kernel.sums = gpu.output<float>(slots * kHeads * kLora);
    kernel.maxima = gpu.output<float>(slots * kHeads);
    kernel.weights = gpu.output<float>(slots * kHeads);
    kernel.arrivals = gpu.buffer(std::vector<uint32_t>(static_cast<size_t>(slots * 2)));
    kernel.scale_log2 = kScale * 1.44269504f;
    if (selects) kernel.lists = {gpu.input(lists), stride};
    gpu.launch(1, gpu::MlaPlan{.tokens = kernel.tokens, .enough = 0}, true);
    for (int32_t first = 0; first < num_tokens; first += setup.round) {
      kernel.first_token = first;
      kernel.last_token = std::min(num_tokens, first + setup.round);
      gpu.launch(2, kernel, true);
    }
    return gpu.read(kernel.out, int64_t{num_tokens} * kHeads * kLora);
  };
  const std::vector<bf16> out = attend(Kernel{}, true);
  const bool has_dense = !setup.only_selecting && std::ranges::any_of(positions, [&](int p) { return p < setup.topk; });
  const std::vector<bf16> dense = has_dense ? attend(Dense{}, false) : std::vector<bf16>();
  double error = 0;
  const size_t row_size = kHeads * kLora;
  for (size_t t = 0; t < positions.size(); ++t) {
    const bool selects = positions[t] >= setup.topk;
    if (!selects && setup.only_selecting) {
      for (size_t i = 0; i < row_size; ++i)
        if (out[t * row_size + i].bits != 0) error = 1e9;
      continue;
    }
    if (!selects && std::memcmp(&out[t * row_size], &dense[t * row_size], row_size * 2) != 0) error = 1e9;
    const std::vector<double>& right =
        expected(sequences[static_cast<size_t>(sequence_idx[t])], positions[t], setup.topk, kFp8);
    for (int head = 0; head < kHeads; ++head) {
      float row[kLora];
      for (int k = 0; k < kLora; ++k) row[k] = to_float(out[t * row_size + static_cast<size_t>(head * kLora + k)]);
      const double one = row_error(row, &right[head * kLora], kLora);
      if (std::isnan(one)) return {one, kTolerance, 0};
      error = std::max(error, one);
    }
  }
  return {error, kTolerance, hash_of_bytes(&out[static_cast<size_t>(setup.watched) * row_size], row_size * 2)};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  const auto bf16 = [](const char* name, Setup setup, const char* watched = "") {
    return Case{name, [setup](SimtEmulator& gpu) { return run<longcat::gpu::SelectedBf16>(gpu, setup); }, watched};
  };
  const auto fp8 = [](const char* name, Setup setup, const char* watched = "") {
    return Case{name, [setup](SimtEmulator& gpu) { return run<longcat::gpu::SelectedFp8>(gpu, setup); }, watched};
  };
  return prove(
      argc, argv,
      {bf16("a list of 129 of 150", {.chunks = {{1, 149, 1}}, .topk = 129}, "1 at 149"),
       bf16("5 draft tokens, the last three with lists",
            {.chunks = {{2, 70, 1}, {1, 147, 3}}, .topk = 129, .watched = 3, .round = 3}, "1 at 149"),
       bf16("127 to 130 positions of lists of 128", {.chunks = {{3, 126, 4}}, .topk = 128}),
       fp8("65 to 67 positions of lists of 65", {.chunks = {{4, 64, 3}, {5, 80, 1}}, .topk = 65}),
       bf16("prompt tokens: only those with lists",
            {.chunks = {{6, 3, 2}, {1, 148, 2}}, .topk = 129, .watched = 3, .only_selecting = true}, "1 at 149")});
}

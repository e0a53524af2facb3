// Launches MLA prefill on tensor cores: keys and values of some chunks and heads, then their attention.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/mla_prefill.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat {

namespace {

using gpu::kKeyTile;
using gpu::MlaPrefill;

constexpr int64_t kLora = 512;
constexpr int64_t kPositionBytes = 2 * (MlaPrefill::kNope + MlaPrefill::kValue);  // of a head: key and value

int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }
int64_t key_positions(const PromptChunk& chunk) { return tiles_of(chunk.end, kKeyTile) * kKeyTile; }

bool is_aligned(Tensor x, int64_t elements) {
  return reinterpret_cast<uintptr_t>(x.raw()) % static_cast<uintptr_t>(2 * elements) == 0 &&
         x.stride(0) % elements == 0 && x.stride(1) % elements == 0;
}

bool is_aligned(const Weight& weight) {
  return weight.format == WeightFormat::bf16 && reinterpret_cast<uintptr_t>(weight.data) % 16 == 0;
}

// Heads of a block of keys. A block takes as long as gathering its latents, about one head, and its heads.
int64_t heads_of_block(int64_t tiles, int64_t num_heads, int64_t multiprocessors) {
  int64_t best = num_heads, least = INT64_MAX;
  for (int64_t heads = num_heads; heads > 0; --heads) {
    const int64_t blocks = tiles * tiles_of(num_heads, heads), cost = tiles_of(blocks, multiprocessors) * (heads + 1);
    if (cost < least) best = heads, least = cost;
  }
  return best;
}

struct PrefillTensors {
  Tensor out, q, latents;
  const Weight &k_up, &v_up;
};

// Whether a block has the shared memory of the large tiles. Small ones give the same keys and values; their attention
// has other bits, since its tiles are other positions.
bool has_large_tiles(const GpuDevice& device) {
  return device.shared_bytes() >= int64_t{gpu::MlaPrefillKeys<DType::bf16>::kSharedBytes};
}

// Some chunks of the batch, whose keys and values of `heads` heads at a time fit in the workspace.
template <DType kLatents, int kKeyRows, int kQueryRows, int kTile>
void attend(GpuDevice& device, const Buffer& workspace, const PrefillTensors& t, const ForwardBatch& batch,
            std::span<const PromptChunk> chunks, int64_t first_sequence, float scale, int64_t end) {
  using Keys = gpu::MlaPrefillKeys<kLatents, kKeyRows>;
  using Attention = gpu::MlaPrefillTiles<kQueryRows, kTile>;
  const int64_t num_heads = t.q.size(1), element = size_of(t.latents.dtype());
  int64_t positions = 0, query_tiles = 0;
  for (const PromptChunk& chunk : chunks) {
    positions += key_positions(chunk);
    query_tiles += tiles_of(chunk.count, kQueryRows);
  }
  const int64_t fitting = workspace.bytes() / (positions * kPositionBytes);
  LC_CHECK(fitting > 0, "workspace of ", workspace.bytes(), " bytes for one head of ", positions, " positions");
  const int64_t heads_at_once = tiles_of(num_heads, tiles_of(num_heads, fitting));  // as even as can be
  const gpu::PrefillChunks places{.positions = batch.positions.data<int32_t>(),
                                  .query_starts = batch.query_starts.data<int32_t>(),
                                  .first_sequence = static_cast<int32_t>(first_sequence),
                                  .last_sequence = static_cast<int32_t>(first_sequence + std::ssize(chunks)),
                                  .end_position = static_cast<int32_t>(std::min<int64_t>(end, INT32_MAX))};
  for (int64_t head = 0; head < num_heads; head += heads_at_once) {
    const int64_t heads = std::min(heads_at_once, num_heads - head);
    bf16* const keys = static_cast<bf16*>(workspace.data());
    bf16* const values = keys + heads * positions * MlaPrefill::kNope;
    const int64_t per_block = heads_of_block(positions / kKeyRows, heads, device.num_multiprocessors());
    simt::launch(device, positions / kKeyRows * tiles_of(heads, per_block),
                 Keys{.chunks = places,
                      .latents = t.latents.data<unsigned char>(),
                      .block_bytes = t.latents.stride(0) * element,
                      .block_tables = batch.block_tables.data<int32_t>(),
                      .block_table_stride = batch.block_tables.stride(0),
                      .k_up = static_cast<const bf16*>(t.k_up.data) + head * kLora * MlaPrefill::kNope,
                      .v_up = static_cast<const bf16*>(t.v_up.data) + head * MlaPrefill::kValue * kLora,
                      .keys = keys,
                      .values = values,
                      .num_positions = positions,
                      .num_heads = static_cast<int32_t>(heads),
                      .heads_of_block = static_cast<int32_t>(per_block)});
    simt::launch(device, query_tiles * heads,
                 Attention{.chunks = places,
                           .q = t.q.data<bf16>() + head * t.q.stride(1),
                           .out = t.out.data<bf16>() + head * t.out.stride(1),
                           .q_strides = {t.q.stride(0), t.q.stride(1)},
                           .out_strides = {t.out.stride(0), t.out.stride(1)},
                           .first_row = static_cast<int32_t>(batch.num_decode_tokens),
                           .latents = t.latents.data<unsigned char>(),
                           .block_bytes = t.latents.stride(0) * element,
                           .row_bytes = Keys::kRowBytes,
                           .rope_in_row = Keys::kRowBytes - 2 * MlaPrefill::kRope,
                           .block_tables = batch.block_tables.data<int32_t>(),
                           .block_table_stride = batch.block_tables.stride(0),
                           .keys = keys,
                           .values = values,
                           .num_positions = positions,
                           .num_heads = static_cast<int32_t>(heads),
                           .num_tiles = static_cast<int32_t>(query_tiles),
                           .scale_log2 = scale * 1.44269504f});
  }
}

}  // namespace

bool CudaOps::prefill_on_tensor_cores(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                                      const ForwardBatch& batch, float scale, int64_t end) {
  const int64_t num_heads = q.size(1), block_bytes = latents.stride(0) * size_of(latents.dtype());
  if (activation_dtype_ != DType::bf16 || (latents.dtype() != DType::bf16 && latents.dtype() != DType::f8_e4m3) ||
      q.size(2) != MlaPrefill::kDim || k_up.in_features != MlaPrefill::kNope || v_up.in_features != kLora ||
      v_up.out_features != num_heads * MlaPrefill::kValue ||
      (!device_->emulated() && device_->compute_capability() < 80) || !is_aligned(q, 8) || !is_aligned(out, 4) ||
      !is_aligned(k_up) || !is_aligned(v_up) || reinterpret_cast<uintptr_t>(latents.raw()) % 16 != 0 ||
      block_bytes % 16 != 0)
    return false;
  const std::span<const PromptChunk> chunks = batch.prompt_chunks;
  int64_t num_rows = 0;
  for (const PromptChunk& chunk : chunks) num_rows += chunk.count;
  LC_CHECK(num_rows == q.size(0), "prompt chunks of ", num_rows, " tokens for ", q.size(0), " rows");
  // Chunks whose keys and values fit in the workspace for all heads go together; a longer one goes alone, some heads
  // at a time.
  for (size_t first = 0; first < chunks.size();) {
    int64_t positions = key_positions(chunks[first]);
    size_t count = 1;
    for (; first + count < chunks.size(); ++count) {
      positions += key_positions(chunks[first + count]);
      if (positions * num_heads * kPositionBytes > workspace().bytes()) break;
    }
    const auto run = [&](auto attend) {
      attend(*device_, workspace(), {out, q, latents, k_up, v_up}, batch, chunks.subspan(first, count),
             batch.num_decode_sequences + static_cast<int64_t>(first), scale, end);
    };
    const bool is_bf16 = latents.dtype() == DType::bf16;
    if (has_large_tiles(*device_)) {
      is_bf16 ? run(attend<DType::bf16, 128, 256, 64>) : run(attend<DType::f8_e4m3, 128, 256, 64>);
    } else {
      is_bf16 ? run(attend<DType::bf16, 64, 128, 32>) : run(attend<DType::f8_e4m3, 64, 128, 32>);
    }
    first += count;
  }
  return true;
}

}  // namespace longcat

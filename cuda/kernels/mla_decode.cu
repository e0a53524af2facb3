// Launches MLA decode on tensor cores: the list of a step, then each attention.
#include <algorithm>
#include <limits>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/mla_decode.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat {

namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 18;  // generated tokens of a step
constexpr int64_t kLora = 512, kRope = 64;

// What a block takes, where its memory holds the large tiles and where it does not.
constexpr int kLargeTile = 64, kSmallTile = 32;
bool has_large_tiles(const GpuDevice& device) {
  return device.shared_bytes() >= int64_t{gpu::MlaDecode<DType::f8_e4m3, 32>::kSharedBytes};
}
int64_t heads_of_block(const GpuDevice& device, int64_t num_heads) {
  return num_heads % 32 == 0 && has_large_tiles(device) ? 32 : 16;
}

// Size of the partial result of one piece and one block of heads [bytes].
constexpr int64_t slot_bytes(int64_t heads) { return heads * (kLora + 2) * 4; }

// Tokens of a launch: those whose partial results fit in the workspace.
int64_t tokens_at_once(const Buffer& workspace, int64_t num_pieces, int64_t num_heads, int64_t heads) {
  const int64_t slots = num_pieces * (num_heads / heads);
  const int64_t tokens = workspace.bytes() / (slots * slot_bytes(heads));
  LC_CHECK(tokens > 0, "workspace of ", workspace.bytes(), " bytes for ", slots, " partial results of a token");
  return std::min(tokens, kMaxTokens);
}

gpu::MlaTokens tokens_of(const ForwardBatch& batch, const AbsorbedRows& rows, const Buffer& plan, int64_t round) {
  return {.positions = batch.positions.data<int32_t>() + rows.first,
          .sequence_idx = batch.sequence_idx.data<int32_t>() + rows.first,
          .query_starts = batch.query_starts.data<int32_t>(),
          .plan = static_cast<int32_t*>(plan.data()),
          .num_tokens = static_cast<int32_t>(rows.count),
          .round = static_cast<int32_t>(round),
          .topk = static_cast<int32_t>(rows.topk),
          .only_selecting = rows.only_selecting};
}

bool is_aligned(Tensor x, int64_t elements) {
  return reinterpret_cast<uintptr_t>(x.raw()) % static_cast<uintptr_t>(2 * elements) == 0 &&
         x.stride(0) % elements == 0 && x.stride(1) % elements == 0;
}

template <DType kLatents, int kHeads, bool kSelects, int kTile>
void decode(GpuDevice& device, const Buffer& workspace, const MlaDecodeMemory& memory, Tensor out, Tensor q_latent,
            Tensor q_rope, Tensor latents, Tensor selected, const ForwardBatch& batch, const AbsorbedRows& rows,
            float scale) {
  using Kernel = gpu::MlaDecode<kLatents, kHeads, kSelects, kTile>;
  const int64_t num_pieces = num_kv_pieces(rows.context(batch)), num_heads = q_latent.size(1),
                head_blocks = num_heads / kHeads;
  const int64_t round = tokens_at_once(workspace, num_pieces, num_heads, kHeads);
  const int64_t slots = std::min(round, rows.count) * head_blocks * num_pieces;
  const int64_t block_bytes = latents.stride(0) * size_of(latents.dtype());
  LC_CHECK(reinterpret_cast<uintptr_t>(latents.raw()) % 16 == 0 && block_bytes % 16 == 0, "unaligned latents");
  LC_CHECK(latents.size(1) == kBlockSize && latents.size(2) * size_of(latents.dtype()) == Kernel::kRowBytes,
           latents.shape_string());
  Kernel kernel{.tokens = tokens_of(batch, rows, rows.only_selecting ? memory.prompt_plan : memory.plan, round),
                .first_token = 0,
                .last_token = 0,
                .q_latent = q_latent.data<bf16>(),
                .q_rope = q_rope.data<bf16>(),
                .out = out.data<bf16>(),
                .q_latent_strides = {q_latent.stride(0), q_latent.stride(1)},
                .q_rope_strides = {q_rope.stride(0), q_rope.stride(1)},
                .out_strides = {out.stride(0), out.stride(1)},
                .latents = latents.data<unsigned char>(),
                .block_bytes = block_bytes,
                .block_tables = batch.block_tables.data<int32_t>(),
                .block_table_stride = batch.block_tables.stride(0),
                .head_blocks = static_cast<int32_t>(head_blocks),
                .num_pieces = static_cast<int32_t>(num_pieces),
                .sums = static_cast<float*>(workspace.data()),
                .maxima = nullptr,
                .weights = nullptr,
                .arrivals = static_cast<uint32_t*>(memory.arrivals.data()),
                .scale_log2 = scale * 1.44269504f};
  if constexpr (kSelects) kernel.lists = {selected.data<int32_t>(), selected.stride(0)};
  kernel.maxima = kernel.sums + slots * kHeads * kLora;
  kernel.weights = kernel.maxima + slots * kHeads;
  for (int64_t first = 0; first < rows.count; first += round) {
    kernel.first_token = static_cast<int32_t>(first);
    kernel.last_token = static_cast<int32_t>(std::min(first + round, rows.count));
    simt::launch(device, device.num_multiprocessors(), kernel);
  }
}

}  // namespace

MlaDecodeMemory::MlaDecodeMemory(Device& device, int64_t workspace_bytes)
    : plan(device, 4 * (kMaxTokens + 2)),
      prompt_plan(device, 4 * (kMaxTokens + 2)),
      // A token has a counter more than segments, and at least one slot of the workspace a segment.
      arrivals(device, 2 * 4 * (workspace_bytes / slot_bytes(16) + 1)) {}

bool CudaOps::decodes_on_tensor_cores(DType latents, int64_t num_heads, int64_t kv_lora_rank, int64_t rope_dim) const {
  return activation_dtype_ == DType::bf16 && (latents == DType::bf16 || latents == DType::f8_e4m3) && num_heads > 0 &&
         num_heads % 16 == 0 && kv_lora_rank == kLora && rope_dim == kRope &&
         (device_->emulated() || device_->compute_capability() >= 80) &&
         (latents == DType::bf16 || has_large_tiles(*device_));
}

void CudaOps::plan_decode(const ForwardBatch& batch, const MlaShape& shape, DType latents, int64_t topk) {
  if (!decodes_on_tensor_cores(latents, shape.num_heads, shape.kv_lora_rank, shape.qk_rope_head_dim)) return;
  const int64_t heads = heads_of_block(*device_, shape.num_heads), head_blocks = shape.num_heads / heads;
  // Small tiles have no groups: a piece does not stay in shared memory.
  const int32_t enough = has_large_tiles(*device_) ? static_cast<int32_t>(device_->num_multiprocessors() / head_blocks)
                                                   : std::numeric_limits<int32_t>::max();
  const auto plan = [&](const AbsorbedRows& rows, const Buffer& memory) {
    if (rows.count == 0) return;
    LC_CHECK(rows.count <= kMaxTokens, rows.count, " tokens in a step");
    const int64_t round = tokens_at_once(workspace(), num_kv_pieces(rows.context(batch)), shape.num_heads, heads);
    simt::launch(*device_, 1, gpu::MlaPlan{.tokens = tokens_of(batch, rows, memory, round), .enough = enough});
  };
  plan(AbsorbedRows::generated(batch, topk), decode_memory_.plan);
  if (topk > 0) plan(AbsorbedRows::prompt(batch, topk), decode_memory_.prompt_plan);
}

bool CudaOps::attend_on_tensor_cores(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                                     const ForwardBatch& batch, const AbsorbedRows& rows, float scale) {
  const int64_t num_heads = q_latent.size(1);
  if (!decodes_on_tensor_cores(latents.dtype(), num_heads, q_latent.size(2), q_rope.size(2)) ||
      !is_aligned(q_latent, 8) || !is_aligned(q_rope, 8) || !is_aligned(out, 4))
    return false;
  const auto run = [&](auto dense, auto sparse) {
    const auto decode = rows.topk > 0 ? sparse : dense;
    decode(*device_, workspace(), decode_memory_, out, q_latent, q_rope, latents, selected, batch, rows, scale);
  };
  const bool is_wide = heads_of_block(*device_, num_heads) == 32;
  if (!has_large_tiles(*device_)) {
    run(decode<DType::bf16, 16, false, kSmallTile>, decode<DType::bf16, 16, true, kSmallTile>);
  } else if (latents.dtype() == DType::f8_e4m3) {
    is_wide ? run(decode<DType::f8_e4m3, 32, false, kLargeTile>, decode<DType::f8_e4m3, 32, true, kLargeTile>)
            : run(decode<DType::f8_e4m3, 16, false, kLargeTile>, decode<DType::f8_e4m3, 16, true, kLargeTile>);
  } else {
    is_wide ? run(decode<DType::bf16, 32, false, kLargeTile>, decode<DType::bf16, 32, true, kLargeTile>)
            : run(decode<DType::bf16, 16, false, kLargeTile>, decode<DType::bf16, 16, true, kLargeTile>);
  }
  return true;
}

}  // namespace longcat

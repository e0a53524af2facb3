// Launches MLA decode on tensor cores: the list of a step, then each attention.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/mla_decode.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat {

namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 18;  // generated tokens of a step
constexpr int64_t kLora = 512, kRope = 64;

int64_t heads_of_block(int64_t num_heads) { return num_heads % 32 == 0 ? 32 : 16; }

// Size of the partial result of one piece and one block of heads [bytes].
int64_t slot_bytes(int64_t num_heads) { return heads_of_block(num_heads) * (kLora + 2) * 4; }

// Tokens of a launch: those whose partial results fit in the workspace.
int64_t tokens_at_once(const Buffer& workspace, const ForwardBatch& batch, int64_t num_heads) {
  const int64_t slots = num_kv_pieces(batch.decode_context) * (num_heads / heads_of_block(num_heads));
  const int64_t tokens = workspace.bytes() / (slots * slot_bytes(num_heads));
  LC_CHECK(tokens > 0, "workspace of ", workspace.bytes(), " bytes for ", slots, " partial results of a token");
  return std::min(tokens, kMaxTokens);
}

gpu::MlaTokens tokens_of(const ForwardBatch& batch, const Buffer& plan, int64_t round) {
  return {.positions = batch.positions.data<int32_t>(),
          .sequence_idx = batch.sequence_idx.data<int32_t>(),
          .query_starts = batch.query_starts.data<int32_t>(),
          .plan = static_cast<int32_t*>(plan.data()),
          .num_tokens = static_cast<int32_t>(batch.num_decode_tokens),
          .round = static_cast<int32_t>(round)};
}

bool is_aligned(Tensor x, int64_t elements) {
  return reinterpret_cast<uintptr_t>(x.raw()) % static_cast<uintptr_t>(2 * elements) == 0 &&
         x.stride(0) % elements == 0 && x.stride(1) % elements == 0;
}

template <DType kLatents, int kHeads>
void decode(GpuDevice& device, const Buffer& workspace, const MlaDecodeMemory& memory, Tensor out, Tensor q_latent,
            Tensor q_rope, Tensor latents, const ForwardBatch& batch, float scale) {
  using Kernel = gpu::MlaDecode<kLatents, kHeads>;
  const int64_t num_heads = q_latent.size(1), round = tokens_at_once(workspace, batch, num_heads);
  const int64_t num_pieces = num_kv_pieces(batch.decode_context), head_blocks = num_heads / kHeads;
  const int64_t slots = std::min(round, batch.num_decode_tokens) * head_blocks * num_pieces;
  const int64_t block_bytes = latents.stride(0) * size_of(latents.dtype());
  LC_CHECK(reinterpret_cast<uintptr_t>(latents.raw()) % 16 == 0 && block_bytes % 16 == 0, "unaligned latents");
  LC_CHECK(latents.size(1) == kBlockSize && latents.size(2) * size_of(latents.dtype()) == Kernel::kRowBytes,
           latents.shape_string());
  Kernel kernel{.tokens = tokens_of(batch, memory.plan, round),
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
                .arrivals = static_cast<uint32_t*>(memory.arrivals.data()),
                .scale_log2 = scale * 1.44269504f};
  kernel.maxima = kernel.sums + slots * kHeads * kLora;
  kernel.weights = kernel.maxima + slots * kHeads;
  for (int64_t first = 0; first < batch.num_decode_tokens; first += round) {
    kernel.first_token = static_cast<int32_t>(first);
    kernel.last_token = static_cast<int32_t>(std::min(first + round, batch.num_decode_tokens));
    simt::launch(device, device.num_multiprocessors(), kernel);
  }
}

}  // namespace

MlaDecodeMemory::MlaDecodeMemory(Device& device, int64_t workspace_bytes)
    : plan(device, 4 * (kMaxTokens + 2)),
      // A token has a counter more than segments, and at least one slot of the workspace a segment.
      arrivals(device, 2 * 4 * (workspace_bytes / slot_bytes(16) + 1)) {}

bool CudaOps::decodes_on_tensor_cores(DType latents, int64_t num_heads, int64_t kv_lora_rank, int64_t rope_dim) const {
  return activation_dtype_ == DType::bf16 && (latents == DType::bf16 || latents == DType::f8_e4m3) && num_heads > 0 &&
         num_heads % 16 == 0 && kv_lora_rank == kLora && rope_dim == kRope &&
         (device_->emulated() || device_->compute_capability() == 90);
}

void CudaOps::plan_decode(const ForwardBatch& batch, const MlaShape& shape, DType latents) {
  if (batch.num_decode_tokens == 0 ||
      !decodes_on_tensor_cores(latents, shape.num_heads, shape.kv_lora_rank, shape.qk_rope_head_dim))
    return;
  LC_CHECK(batch.num_decode_tokens <= kMaxTokens, batch.num_decode_tokens, " generated tokens in a step");
  const int64_t head_blocks = shape.num_heads / heads_of_block(shape.num_heads);
  const int64_t round = tokens_at_once(workspace(), batch, shape.num_heads);
  simt::launch(*device_, 1,
               gpu::MlaPlan{.tokens = tokens_of(batch, decode_memory_.plan, round),
                            .enough = static_cast<int32_t>(device_->num_multiprocessors() / head_blocks)});
}

bool CudaOps::decode_on_tensor_cores(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents,
                                     const ForwardBatch& batch, float scale) {
  const int64_t num_heads = q_latent.size(1);
  if (!decodes_on_tensor_cores(latents.dtype(), num_heads, q_latent.size(2), q_rope.size(2)) ||
      !is_aligned(q_latent, 8) || !is_aligned(q_rope, 8) || !is_aligned(out, 4))
    return false;
  const auto run = [&](auto decode) {
    decode(*device_, workspace(), decode_memory_, out, q_latent, q_rope, latents, batch, scale);
  };
  if (latents.dtype() == DType::f8_e4m3) {
    run(heads_of_block(num_heads) == 32 ? decode<DType::f8_e4m3, 32> : decode<DType::f8_e4m3, 16>);
  } else {
    run(heads_of_block(num_heads) == 32 ? decode<DType::bf16, 32> : decode<DType::bf16, 16>);
  }
  return true;
}

}  // namespace longcat

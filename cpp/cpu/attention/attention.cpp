// MLA over the paged latent cache. Each token has one latent row of kv_lora_rank + rope values, shared by all heads.
// This file stores the rows and computes absorbed attention for generated tokens.
//
// A token costs 2 * (2 * kv_lora_rank + rope) operations per head and latent row. At the real shape and 32k of context
// that is 64 GFLOP, more than the weights cost. So a tile of 64 rows is widened once and multiplied with the queries of
// all heads. All threads compute pieces of the history in parallel. Tiles are floats, bf16 or integers (latents.h).
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/attention/latents.h"
#include "cpu/attention/rope.h"
#include "cpu/attention/softmax_kernels.h"
#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"
#include "cpu/rows.h"

namespace longcat {

namespace {

using cpu::LatentShape;

constexpr int64_t kPrefetches = 300;  // about as often as a tile's products prefetch from the next tile
constexpr int64_t kMaxPieces = 256;   // number of partial results kept at once, unless one token alone has more

// A piece of one token's history: the positions [begin, end), or, with `selected`, the positions selected[begin..end).
// Its partial result is acc [heads, acc_columns], then max and sum [lanes].
struct Piece {
  int64_t token, begin, end;
  const int32_t* selected;
  float* partial;
};

int64_t partial_size(const LatentShape& shape) { return shape.num_heads * shape.acc_columns() + 2 * shape.lanes(); }

template <class Tile>
void attend_piece(const Piece& piece, const float* queries, Tensor latents, const int32_t* block_table,
                  const LatentShape& shape) {
  const cpu::SoftmaxKernels& softmax = cpu::kernels<cpu::SoftmaxKernels>();
  thread_local Tile tile;  // these vectors grow once
  thread_local std::vector<float> scores, keep;
  scores.resize(static_cast<size_t>(kBlockSize * shape.lanes()));
  keep.resize(static_cast<size_t>(shape.lanes()));
  float* acc = piece.partial;
  float* max = acc + shape.num_heads * shape.acc_columns();
  float* sum = max + shape.lanes();
  std::fill(acc, max, 0.0f);
  std::fill_n(max, shape.lanes(), cpu::kNothing);
  std::fill_n(sum, shape.lanes(), 0.0f);
  for (int64_t begin = piece.begin; begin < piece.end; begin += kBlockSize) {
    const int64_t end = std::min(begin + kBlockSize, piece.end);
    if (piece.selected) {
      tile.gather(latents, block_table, piece.selected + begin, end - begin, shape);
    } else {
      tile.load(latents, block_table, begin, end, shape);
    }
    cpu::Prefetch next;
    if (end < piece.end && !piece.selected) {
      const int64_t row_bytes = latents.size(2) * size_of(latents.dtype());
      next.next = static_cast<const char*>(latents.index(0, block_table[end / kBlockSize]).raw());
      next.end = next.next + std::min(kBlockSize, piece.end - end) * row_bytes;
      next.lines_at_once = static_cast<int>(1 + (next.end - next.next) / (64 * kPrefetches));
    }
    tile.score(scores.data(), queries, shape, next);
    softmax.add_scores(scores.data(), end - begin, shape.lanes(), max, sum, keep.data());
    softmax.keep_rows(acc, shape.num_heads, shape.acc_columns(), keep.data());
    tile.accumulate(acc, scores.data(), shape, next);
  }
}

// out [kv_lora] = the combined pieces of one head, in ascending order. NaN stays NaN.
void combine(float* out, std::span<const Piece> pieces, int64_t head, const LatentShape& shape) {
  const auto max_of = [&](const Piece& p) { return p.partial[shape.num_heads * shape.acc_columns() + head]; };
  const auto sum_of = [&](const Piece& p) {
    return p.partial[shape.num_heads * shape.acc_columns() + shape.lanes() + head];
  };
  float max = cpu::kNothing, sum = 0;
  for (const Piece& piece : pieces) max = std::max(max, max_of(piece));
  for (const Piece& piece : pieces) sum += sum_of(piece) * std::exp(max_of(piece) - max);
  std::fill_n(out, shape.kv_lora_rank, 0.0f);
  for (const Piece& piece : pieces)
    cpu::add_scaled(out, std::exp(max_of(piece) - max) / sum, piece.partial + head * shape.acc_columns(),
                    shape.kv_lora_rank);
}

}  // namespace

void CpuOps::mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                       const ForwardBatch& batch) {
  const int64_t kv_lora_rank = norm_weight.size(0), rope_dim = kv_a.size(1) - kv_lora_rank;
  for (int64_t t = 0; t < kv_a.size(0); ++t) {
    float* row = kv_a.row<float>(t);
    cpu::norm_row(row, row, norm_weight.data<float>(), kv_lora_rank, eps);
    cpu::rotate_pairs(row + kv_lora_rank, cos.row<float>(t), sin.row<float>(t), rope_dim);
    cpu::store_latent(latents, batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[t]),
                      batch.positions.data<int32_t>()[t], row, kv_lora_rank, rope_dim);
  }
}

void CpuOps::mla_decode(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                        float scale) {
  attend_absorbed(out, q_latent, q_rope, latents, {}, batch, 0, scale);
}

void CpuOps::mla_decode_selected(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                                 const ForwardBatch& batch, float scale) {
  attend_absorbed(out, q_latent, q_rope, latents, selected, batch, 0, scale);
}

void CpuOps::attend_absorbed(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                             const ForwardBatch& batch, int64_t first_row, float scale) {
  const LatentShape shape{q_latent.size(1), q_latent.size(2), q_rope.size(2)};
  const int64_t num_rows = out.size(0);
  const auto block_table = [&](int64_t t) {
    return batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[first_row + t]);
  };
  const auto attend = [&]<class Tile>(std::type_identity<Tile>) {
    thread_local std::vector<float> queries, partials;  // these vectors grow once
    thread_local std::vector<Piece> pieces;
    thread_local std::vector<size_t> first_piece;  // of each token, then of the end
    const int64_t queries_size = Tile::queries_size(shape);
    // Takes as many tokens at once as have at most kMaxPieces pieces together.
    for (int64_t first = 0, last; first < num_rows; first = last) {
      pieces.clear();
      first_piece.assign(1, 0);
      for (last = first; last < num_rows; ++last) {
        const int64_t visible = batch.positions.data<int32_t>()[first_row + last] + 1;
        const bool selects = !selected.empty() && visible > selected.size(1);
        const int64_t length = selects ? selected.size(1) : visible;
        const int32_t* const positions = selects ? selected.row<int32_t>(last) : nullptr;
        for (int64_t begin = 0; begin < length; begin = kv_piece_end(begin))
          pieces.push_back({last, begin, std::min(kv_piece_end(begin), length), positions, nullptr});
        if (last > first && pieces.size() > kMaxPieces) {
          pieces.resize(first_piece.back());
          break;
        }
        first_piece.push_back(pieces.size());
      }
      queries.resize(static_cast<size_t>((last - first) * queries_size));
      partials.resize(pieces.size() * static_cast<size_t>(partial_size(shape)));
      for (size_t i = 0; i < pieces.size(); ++i)
        pieces[i].partial = partials.data() + i * static_cast<size_t>(partial_size(shape));
      float* const all_queries = queries.data();
      const std::span<const Piece> all_pieces = pieces;
      const std::span<const size_t> starts = first_piece;
      pool_.parallel_for(last - first, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          Tile::prepare_queries(all_queries + i * queries_size,
                                {.latent = q_latent.row<float>(first + i),
                                 .rope = q_rope.row<float>(first + i),
                                 .latent_stride = q_latent.stride(1),
                                 .rope_stride = q_rope.stride(1)},
                                shape, scale);
      });
      // Long pieces, which come last in a history, go first. The short ones then even out the load of the threads.
      const int64_t num_pieces = static_cast<int64_t>(all_pieces.size());
      const int64_t grain = grain_for(kv_piece_end(0) * shape.lanes() * (shape.dim() + shape.kv_lora_rank));
      pool_.parallel_for(num_pieces, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Piece& piece = all_pieces[static_cast<size_t>(num_pieces - 1 - i)];
          attend_piece<Tile>(piece, all_queries + (piece.token - first) * queries_size, latents,
                             block_table(piece.token), shape);
        }
      });
      const int64_t rows_per_thread = grain_for(num_pieces / (last - first) * shape.kv_lora_rank);
      pool_.parallel_for((last - first) * shape.num_heads, rows_per_thread, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t t = i / shape.num_heads, head = i % shape.num_heads;
          const size_t start = starts[static_cast<size_t>(t)];
          combine(out.row<float>(first + t) + head * out.stride(1),
                  all_pieces.subspan(start, starts[static_cast<size_t>(t) + 1] - start), head, shape);
        }
      });
    }
  };
  if (latents.dtype() == DType::i8) {
    attend(std::type_identity<cpu::Int8Tile>());
  } else if (rounds_inputs_ && cpu::Bf16Tile::fits(latents, shape)) {
    attend(std::type_identity<cpu::Bf16Tile>());
  } else {
    attend(std::type_identity<cpu::FloatTile>());
  }
}

}  // namespace longcat

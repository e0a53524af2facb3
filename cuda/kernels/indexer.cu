// The indexer of sparse attention: stores index keys, scores positions, and selects. Scores of the published shape are
// computed on tensor cores (index_scores.h), others by a plain kernel. select_positions.h explains the selection.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/index_scores.h"
#include "cuda/kernels/select_positions.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::IndexScores;
using gpu::Selection;
using gpu::View;

// One set of index keys (ops.h): the rows of a block are contiguous, the blocks strided.
struct KeyView {
  View rows;
  int64_t block_stride, dim;  // [elements]

  explicit KeyView(Tensor keys) : rows(keys), block_stride(keys.stride(0)), dim(keys.size(2)) {
    LC_CHECK(keys.size(1) == kBlockSize && keys.stride(1) == dim, keys.shape_string());
  }
  LC_HD int64_t row(const int32_t* block_table, int64_t position) const {
    return block_table[position / kBlockSize] * block_stride + position % kBlockSize * dim;
  }
};

// A block takes a token.
struct IndexStore {
  static constexpr int kThreads = 128;
  KeyView keys;
  View k;                       // [num_tokens, index_head_dim]
  const float* norm_weight;     // [index_head_dim]
  const float* cos;             // [num_tokens, half]
  const float* sin;             // [num_tokens, half]
  const int32_t* positions;     // [num_tokens]
  const int32_t* sequence_idx;  // [num_tokens]
  const int32_t* block_tables;  // [num_sequences, max_blocks]
  int64_t block_table_stride;   // [elements]
  int64_t half;                 // pairs that are rotated
  float eps;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index, dim = keys.dim;
    float* values = block.shared<float>();
    block.for_each(dim, [&](int64_t i) { values[i] = k.get(t * k.stride0 + i); });
    const float squares = block.sum<float>(dim, [&](int64_t i) { return values[i] * values[i]; });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
    block.for_each(dim, [&](int64_t i) { values[i] = values[i] * scale * norm_weight[i]; });
    block.for_each(half, [&](int64_t j) {
      const float c = cos[t * half + j], s = sin[t * half + j], even = values[2 * j], odd = values[2 * j + 1];
      values[2 * j] = even * c - odd * s;
      values[2 * j + 1] = odd * c + even * s;
    });
    const int64_t row = keys.row(block_tables + sequence_idx[t] * block_table_stride, positions[t]);
    block.for_each(dim, [&](int64_t i) { keys.rows.set(row + i, values[i]); });
  }
};

// The scores of any shape. A block takes a token and 64 positions.
struct PlainIndexScores {
  static constexpr int kThreads = 64;
  KeyView keys;
  View q;                       // [num_tokens, num_heads, index_head_dim]
  const float* head_weights;    // [num_tokens, num_heads]
  int64_t weights_stride;       // [elements]
  const int32_t* positions;     // [num_tokens]
  const int32_t* sequence_idx;  // [num_tokens]
  const int32_t* block_tables;  // [num_sequences, max_blocks]
  int64_t block_table_stride;   // [elements]
  float* scores;                // [rows of the launch, context]
  int64_t context, num_heads, first_row, topk, local_tokens;
  float scale;

  LC_HD void operator()(const Block& block) const {
    const int64_t tiles = context / kBlockSize, row = block.index / tiles, t = first_row + row;
    const int64_t begin = block.index % tiles * kBlockSize, end = positions[t] + 1 - local_tokens;
    if (positions[t] < topk || begin >= end) return;
    const int32_t* table = block_tables + sequence_idx[t] * block_table_stride;
    block.for_each(end - begin < kBlockSize ? end - begin : kBlockSize, [&](int64_t i) {
      const int64_t key = keys.row(table, begin + i);
      float score = 0;
      for (int64_t h = 0; h < num_heads; ++h) {
        const int64_t query = t * q.stride0 + h * q.stride1;
        float product = 0;
        for (int64_t d = 0; d < keys.dim; ++d) product += q.get(query + d) * keys.rows.get(key + d);
        score += head_weights[t * weights_stride + h] * scale * (product > 0 ? product : 0.0f);
      }
      scores[row * context + begin + i] = score;
    });
  }
};

// A thread takes a column, and moves its rows in ascending order: no row is overwritten before it is read, since
// rows[i] is at least i.
struct ExtendSelection {
  static constexpr int kThreads = 256;
  int32_t* selected;         // [num_rows or more, width]
  int64_t stride;            // [elements]
  const int32_t* rows;       // [num_rows]
  const int32_t* positions;  // [num_rows]
  int64_t num_rows, width;

  LC_HD void operator()(const Block& block) const {
    constexpr int64_t kAhead = 8;
    const int64_t first = block.index * kThreads, left = width - first;
    block.for_each(left < kThreads ? left : kThreads, [&](int64_t i) {
      int32_t* column = selected + first + i;
      for (int64_t row = 0; row < num_rows; row += kAhead) {
        int32_t values[kAhead] = {};
        for (int64_t j = 0; j < kAhead && row + j < num_rows; ++j)
          values[j] = first + i + 1 < width ? column[rows[row + j] * stride] : positions[row + j];
        for (int64_t j = 0; j < kAhead && row + j < num_rows; ++j) column[(row + j) * stride] = values[j];
      }
    });
  }
};

bool is_aligned(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

}  // namespace

void CudaOps::index_store(Tensor index_keys, Tensor k, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                          const ForwardBatch& batch) {
  gpu::launch(*device_, k.size(0), 4 * k.size(1),
              IndexStore{.keys = KeyView(index_keys),
                         .k = View(k),
                         .norm_weight = norm_weight.data<float>(),
                         .cos = cos.data<float>(),
                         .sin = sin.data<float>(),
                         .positions = batch.positions.data<int32_t>(),
                         .sequence_idx = batch.sequence_idx.data<int32_t>(),
                         .block_tables = batch.block_tables.data<int32_t>(),
                         .block_table_stride = batch.block_tables.stride(0),
                         .half = cos.size(1),
                         .eps = eps});
}

bool CudaOps::scores_on_tensor_cores(Tensor q, Tensor index_keys) const {
  return q.dtype() == DType::bf16 && index_keys.dtype() == DType::bf16 && q.size(1) == IndexScores::kHeads &&
         q.size(2) == IndexScores::kDim && is_aligned(q.raw(), q.stride(0)) && q.stride(1) % 8 == 0 &&
         is_aligned(index_keys.raw(), index_keys.stride(0)) &&
         (device_->emulated() || device_->compute_capability() >= 80);
}

// As many rows at once as the workspace holds. The launches depend on the number of rows and on the context bucket
// only.
void CudaOps::select_positions(Tensor selected, Tensor q, Tensor head_weights, Tensor index_keys,
                               const ForwardBatch& batch, const SelectionRule& rule, float scale) {
  const int64_t num_rows = q.size(0), context = batch.block_tables.size(1) * kBlockSize;
  const bool has_free = rule.topk > rule.init_tokens + rule.local_tokens;
  const int64_t row_bytes = context * 8 + context / 8;  // scores, candidates, marks
  const int64_t rows_at_once = std::min({num_rows, kSelectionRowsAtOnce, workspace().bytes() / row_bytes});
  LC_CHECK(rows_at_once > 0 && context <= Selection::kMaxContext, "workspace of ", workspace().bytes(),
           " bytes for a context of ", context);
  const int32_t topk = static_cast<int32_t>(rule.topk), init_tokens = static_cast<int32_t>(rule.init_tokens);
  const int32_t local_tokens = static_cast<int32_t>(rule.local_tokens);
  float* const scores = static_cast<float*>(workspace().data());
  int32_t* const candidates = reinterpret_cast<int32_t*>(scores + rows_at_once * context);
  Selection selection{
      .scores = scores,
      .positions = batch.positions.data<int32_t>(),
      .states = static_cast<gpu::SelectionState*>(selection_states_.data()),
      .bins = static_cast<uint32_t*>(selection_bins_.data()),
      .marks = reinterpret_cast<uint32_t*>(candidates + rows_at_once * context),
      .candidates = candidates,
      .selected = selected.data<int32_t>(),
      .selected_stride = selected.stride(0),
      .context = context,
      .first_row = 0,
      .blocks_per_row = has_free ? static_cast<int32_t>((context + Selection::kSlice - 1) / Selection::kSlice) : 1,
      .topk = topk,
      .init_tokens = init_tokens,
      .local_tokens = local_tokens};
  for (int64_t first = 0; first < num_rows; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, num_rows - first);
    selection.first_row = static_cast<int32_t>(first);
    if (has_free) {
      if (scores_on_tensor_cores(q, index_keys)) {
        // Two blocks fit a multiprocessor. Each has at least 8 tiles, so that the first is a small part of its time.
        const int64_t groups = (count + IndexScores::kRows - 1) / IndexScores::kRows;
        const int64_t tiles = context / IndexScores::kTile;
        const int64_t wanted = std::max<int64_t>(1, 2 * device_->num_multiprocessors() / groups);
        const int64_t tiles_of_piece = std::max<int64_t>(8, (tiles + wanted - 1) / wanted);
        const int64_t num_pieces = (tiles + tiles_of_piece - 1) / tiles_of_piece;
        simt::launch(*device_, groups * num_pieces,
                     IndexScores{.q = q.data<bf16>(),
                                 .q_strides = {q.stride(0), q.stride(1)},
                                 .head_weights = head_weights.data<float>(),
                                 .weights_stride = head_weights.stride(0),
                                 .keys = index_keys.data<bf16>(),
                                 .block_stride = index_keys.stride(0),
                                 .positions = selection.positions,
                                 .sequence_idx = batch.sequence_idx.data<int32_t>(),
                                 .block_tables = batch.block_tables.data<int32_t>(),
                                 .block_table_stride = batch.block_tables.stride(0),
                                 .scores = scores,
                                 .context = context,
                                 .first_row = static_cast<int32_t>(first),
                                 .last_row = static_cast<int32_t>(first + count),
                                 .num_pieces = static_cast<int32_t>(num_pieces),
                                 .piece = static_cast<int32_t>(tiles_of_piece * IndexScores::kTile),
                                 .topk = topk,
                                 .init_tokens = init_tokens,
                                 .local_tokens = local_tokens,
                                 .scale = scale});
      } else {
        gpu::launch(*device_, count * (context / kBlockSize), 0,
                    PlainIndexScores{.keys = KeyView(index_keys),
                                     .q = View(q),
                                     .head_weights = head_weights.data<float>(),
                                     .weights_stride = head_weights.stride(0),
                                     .positions = selection.positions,
                                     .sequence_idx = batch.sequence_idx.data<int32_t>(),
                                     .block_tables = batch.block_tables.data<int32_t>(),
                                     .block_table_stride = batch.block_tables.stride(0),
                                     .scores = scores,
                                     .context = context,
                                     .num_heads = q.size(1),
                                     .first_row = first,
                                     .topk = rule.topk,
                                     .local_tokens = rule.local_tokens,
                                     .scale = scale});
      }
      simt::launch(*device_, count * selection.blocks_per_row, gpu::SelectionBins{selection});
    }
    simt::launch(*device_, count * selection.blocks_per_row, gpu::SelectionLists{selection});
  }
}

void CudaOps::extend_selection(Tensor selected, Tensor rows, Tensor positions) {
  const int64_t width = selected.size(1);
  gpu::launch(*device_, (width + ExtendSelection::kThreads - 1) / ExtendSelection::kThreads, 0,
              ExtendSelection{.selected = selected.data<int32_t>(),
                              .stride = selected.stride(0),
                              .rows = rows.data<int32_t>(),
                              .positions = positions.data<int32_t>(),
                              .num_rows = rows.size(0),
                              .width = width});
}

}  // namespace longcat

// The hash of the N-gram tables, for one token and one table.
#pragma once

#include "cuda/kernels/block.h"
#include "ops/ops.h"

namespace longcat {

constexpr int64_t kMaxNgramTables = 64;  // per launch, because their pointers and hashes are kernel parameters

// The batch and the token lane as pointers (batch.h).
struct NgramHistory {
  const int32_t* token_ids;     // [T]
  const int32_t* positions;     // [T]
  const int32_t* sequence_idx;  // [T]
  const int32_t* query_starts;  // [num_sequences + 1]
  const int32_t* block_tables;  // [num_sequences, max_blocks], strided
  int64_t block_table_stride;   // [elements]
  const int32_t* lane;          // [num_slots] token ids
  int32_t eos_token_id;

  // Slot of the token `distance` positions before token t.
  LC_HD int64_t slot(int64_t t, int64_t distance) const {
    return slot_of(block_tables + sequence_idx[t] * block_table_stride, positions[t] - distance);
  }

  // The id `distance` >= 1 positions before token t, which must exist. It is in the batch when it belongs to the same
  // chunk, else in the token lane.
  LC_HD int32_t before(int64_t t, int64_t distance) const {
    return t - distance >= query_starts[sequence_idx[t]] ? token_ids[t - distance] : lane[slot(t, distance)];
  }
};

struct NgramHashes {
  int64_t max_order, splits;
  int64_t moduli[kMaxNgramTables] = {};                    // [num_tables] rows of each table
  int64_t powers[kMaxNgramTables * (kMaxNgram - 1)] = {};  // [num_tables, max_order - 1]
};

// Row of `table` for token t: (x_p + sum_d s_d * powers[d]) mod modulus. The window ends at the sequence's start and
// before an EOS. The sum is below 2^63, because modulus * vocab_size * order is (checked at load).
LC_HD inline int64_t ngram_row(const NgramHistory& history, const NgramHashes& hashes, int64_t t, int64_t table) {
  const int64_t order = table / hashes.splits + 2;
  const int64_t* powers = hashes.powers + table * (hashes.max_order - 1);
  int64_t sum = history.token_ids[t];
  for (int64_t d = 1; d < order && d <= history.positions[t]; ++d) {
    const int32_t id = history.before(t, d);
    if (id == history.eos_token_id) break;
    sum += id * powers[d - 1];
  }
  return sum % hashes.moduli[table];
}

}  // namespace longcat

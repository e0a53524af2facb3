"""The registration of cuda/kernels/index_scores.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::IndexScores"]
SOURCES = ["cuda/kernels/index_scores.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "Q fragment: rows and columns swapped": (
        "lane % 16) * kRow + (k * 16 + lane / 16 * 8)",
        "lane / 2) * kRow + (k * 16 + lane % 2 * 8)",
    ),
    "K fragment: halves of 8 swapped": ("(k * 32 + lane / 8 * 8) * 2)", "(k * 32 + (lane / 8 ^ 1) * 8) * 2)"),
    "K fragment: steps swapped": ("query[2 * k + 1], b[2], b[3]", "query[2 * k], b[2], b[3]"),
    "query of the first row": ("(own * kHeads + lane % 16)", "(lane % 16)"),
    "query of the run's first token": ("q + (run.row + place / kHeads) * q_strides[0]", "q + run.row * q_strides[0]"),
    "weights of the run's first token": (
        "head_weights + (run.row + own) * weights_stride",
        "head_weights + run.row * weights_stride",
    ),
    "weights of the first 8 heads": ("weights_stride + group + i * 8)", "weights_stride + group)"),
    "no ReLU": ("products[i] > 0 ? products[i] : 0.0f", "products[i]"),
    "no ReLU for the last 8 heads": ("products[2 + i] > 0 ? products[2 + i] : 0.0f", "products[2 + i]"),
    "-0": (
        "fma_rn(weights[0], products[i] > 0 ? products[i] : 0.0f, 0.0f)",
        "mul_rn(weights[0], products[i] > 0 ? products[i] : 0.0f)",
    ),
    "sum over 4 of 8 lanes": ("mask = 4; mask < 32", "mask = 4; mask < 16"),
    "not scaled": ("group + i * 8), scale)", "group + i * 8), 1.0f)"),
    "positions of the other half": ("warp / rows * rows;", "warp / rows * rows / 2;"),
    "one row too few": ("while (rows < run.count) rows *= 2;", "while (rows < run.count - 1) rows *= 2;"),
    "scores of the run's first row": ("(run.row + own - first_row) * context", "(run.row - first_row) * context"),
    "scores of the batch": ("(run.row + own - first_row) * context", "(run.row + own) * context"),
    "scores of one lane more": ("if (group == 0) store_global", "if (group <= 1) store_global"),
    "stage never changes": ("stage = (stage + 1) % kStages)", "stage = stage)"),
    "tiles one further": ("begin + (kStages - 1) * kTile);", "begin + kStages * kTile);"),
    "block table ignored": (
        "load_global(run.block_table + begin / kTile) * block_stride",
        "begin / kTile * block_stride",
    ),
    "block table of the first sequence": ("block_tables + sequence * block_table_stride", "block_tables"),
    "last row is zero": ("k, begin + row < run.end)", "k, begin + row < run.end - 1)"),
    "runs over sequences": ("load_global(sequence_idx + stop) == sequence) ++stop", "true) ++stop"),
    "end of the run's first token": ("positions + stop - 1), chosen_end", "positions + row), chosen_end"),
    "one position early": ("chosen_end = position + 1 - local_tokens;", "chosen_end = position - local_tokens;"),
    "pieces of the first": ("from = block % num_pieces * piece;", "from = 0;"),
    "first positions from the next tile": ("init_tokens / kTile * kTile;", "(init_tokens / kTile + 1) * kTile;"),
    "rows of the first launch": (
        "first = first_row + block / num_pieces * kRows;",
        "first = block / num_pieces * kRows;",
    ),
    "rows not padded": ("kRow = (kDim + 8) * 2", "kRow = kDim * 2"),
    "too little shared memory": ("kSharedBytes = kKeysAt + kStages * kStage", "kSharedBytes = kKeysAt + 2 * kStage"),
}

"""The registration of cuda/kernels/mla_prefill.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::MlaPrefill", "longcat::gpu::MlaPrefillSmall"]
SOURCES = ["cuda/kernels/mla_prefill.h", "cuda/kernels/mla_prefill_work.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    # work
    "rows of the first chunk": (".row = shuffle(row, lane)", ".row = shuffle(row, 0)"),
    "start of the first chunk": (".start = shuffle(start, lane)", ".start = shuffle(start, 0)"),
    "count of the first chunk": (".count = shuffle(count, lane)", ".count = shuffle(count, 0)"),
    "tile among all chunks": ("number - shuffle(items - own, lane)", "number"),
    "keys of the first chunk": ("key_tiles + shuffle(keys - own_keys, lane)", "0"),
    "keys of the next chunk": ("shuffle(keys - own_keys, lane)", "shuffle(keys, lane)"),
    "key tiles of 64": ("(start + count + kKeyTile - 1) / kKeyTile", "(start + count + kKeyTile - 1) / (kKeyTile / 2)"),
    "tokens behind the end": ("count = left < count ? left : count;", ""),
    "a chunk behind the end": ("count = count < 0 ? 0 : count;", "count = count < 0 ? 1 : count;"),
    "no sums of lanes": ("items += lane_idx() >= delta ? items_below : 0;", ""),
    "no sums of keys": ("keys += lane_idx() >= delta ? keys_below : 0;", ""),
    "the first sequences of the batch": ("sequence = first + lane_idx();", "sequence = lane_idx();"),
    "the first query tile": ("first = item.number * kQueryRows", "first = 0"),
    "the last tile left out": ("(start + rows - 1) / kTile + 1;", "(start + rows - 1) / kTile;"),
    "rows by the batch": ("item.row + first - first_row, head};", "item.row + first, head};"),
    "rows of the chunk's begin": ("item.row + first - first_row, head};", "item.row - first_row, head};"),
    "every block the first head": ("head = index % num_heads;", "head = 0;"),
    # loads
    "queries of the first head": ("q + row * q_strides[0] + head * q_strides[1]", "q + row * q_strides[0]"),
    "queries behind the chunk": ("valid = r < rows;", "valid = true;"),
    "keys of the first head": ("place.head * num_positions +", ""),
    "keys of the launch's first chunk": ("int64_t{place.first_key_tile} * kKeyTile +", ""),
    "the first tile of keys": (" + int64_t{number} * kTile;", ";"),
    "rope part of the first block": ("* block_table_stride + number / kOfBlock)", "* block_table_stride)"),
    "rope part of the first sequence": ("place.sequence * block_table_stride + number", "number"),
    "rope part of a block's first tile": ("number % kOfBlock * kTile * row_bytes", "0"),
    "rope part of another place": ("row_bytes + rope_in_row;", "row_bytes + rope_in_row - 16;"),
    "both tiles in one stage": ("stage = shared + kStagesAt + number % 2 * kStage;", "stage = shared + kStagesAt;"),
    # Q K^T
    "Q fragment: rows and columns swapped": (
        "(m * 16 + lane % 16) * kRow + (k + lane / 16 * 8) * 2",
        "(m * 16 + lane / 2) * kRow + (k + lane % 2 * 8) * 2",
    ),
    "K fragment: halves of 8 swapped": (
        "lane % 8 + lane / 16 * 8) * kRow + (k + lane / 8 % 2 * 8)",
        "lane % 8 + lane / 8 % 2 * 8) * kRow + (k + lane / 16 * 8)",
    ),
    "no rope part": ("k < kDim; k += 16", "k < kNope; k += 16"),
    "queries of the first warp": ("scores(s, shared + warp_row * kRow, stage)", "scores(s, shared, stage)"),
    # mask
    "mask one position late": ("n * 8 + column + i % 2 < seen +", "n * 8 + column + i % 2 <= seen +"),
    "mask one position early": ("n * 8 + column + i % 2 < seen +", "n * 8 + column + i % 2 + 1 < seen +"),
    "no mask": ("if (seen < kTile) mask(s, seen);", ""),
    "mask of half the tile": ("if (seen < kTile) mask", "if (seen < kTile / 2) mask"),
    "rows of a mask: halves swapped": ("i / 2 * 8 + row ?", "(1 - i / 2) * 8 + row ?"),
    "rows of a mask: 16 rows": ("seen + m * 16 +", "seen +"),
    "mask of the first warp": ("seen = start + warp_row - tile * kTile + 1;", "seen = start - tile * kTile + 1;"),
    "a warp's last tile left out": ("(start + last_row) / kTile + 1 : 0", "(start + last_row) / kTile : 0"),
    "a warp ends with its first row": ("(start + last_row) / kTile + 1 : 0", "(start + warp_row) / kTile + 1 : 0"),
    # softmax
    "maximum over 2 of 4 lanes": (
        "lanes = 1; lanes < 4; lanes *= 2) { const float other",
        "lanes = 1; lanes < 2; lanes *= 2) { const float other",
    ),
    "running maximum forgotten": ("most = before > most ? before : most;", ""),
    "maximum not kept": ("maxima[m][h] = most;", ""),
    "sum of weights not rescaled": ("fma_rn(weights[m][h], keep, sum)", "add_rn(weights[m][h], sum)"),
    "sums not rescaled": ("mul_rn(sums[m][n][i], keep);", "sums[m][n][i];"),
    "half of the sums rescaled": (
        "n = 0; n < 16; ++n) LC_UNROLL for (int i = 2 * h;",
        "n = 0; n < 8; ++n) LC_UNROLL for (int i = 2 * h;",
    ),
    "weights of 2 of 4 lanes": ("lanes < 4; lanes *= 2) weight", "lanes < 2; lanes *= 2) weight"),
    # P V
    "P fragment: quarters swapped": (
        "p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]",
        "p[m][2 * k + i % 2][i / 2 * 2], p[m][2 * k + i % 2][i / 2 * 2 + 1]",
    ),
    "V without transposition": ("ldmatrix_trans(b, values", "ldmatrix(b, values"),
    "V fragment: halves of 8 swapped": (
        "(k * 16 + lane % 16) * kValueRow + (n * 16 + lane / 16 * 8)",
        "(k * 16 + lane % 8 + lane / 16 * 8) * kValueRow + (n * 16 + lane / 8 % 2 * 8)",
    ),
    "keys as values": ("add_values(sums, s, stage + kValuesAt)", "add_values(sums, s, stage)"),
    # output
    "not divided by the weights": ("inverse = 1.0f / weight;", "inverse = 1.0f;"),
    "rows 8 apart swapped": ("row = warp_row + m * 16 + h * 8", "row = warp_row + m * 16 + (h ^ 1) * 8"),
    "rows behind the chunk": ("pairs[0], pairs[1], row < rows);", "pairs[0], pairs[1], true);"),
    "output of the first head": ("* out_strides[0] + place.head * out_strides[1];", "* out_strides[0];"),
    "output of the chunk's first rows": ("out + place.row * out_strides[0]", "out"),
    # layout
    "rows not padded": ("kRow = (kDim + 8) * 2", "kRow = kDim * 2"),
    "rows of values not padded": ("kValueRow = (kValue + 8) * 2", "kValueRow = kValue * 2"),
    "too little shared memory": ("kSharedBytes = kPlaceAt + 16;", "kSharedBytes = kPlaceAt;"),
}

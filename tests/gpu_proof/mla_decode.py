"""The registration of cuda/kernels/mla_decode.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::MlaDecode"]
SOURCES = ["cuda/kernels/mla_decode.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "Q fragment: rows and columns swapped": (
        "lane % 16) * kRow + (slice * kSliceDim + k * 16 + lane / 16 * 8)",
        "lane / 2) * kRow + (slice * kSliceDim + k * 16 + lane % 2 * 8)",
    ),
    "K fragment: halves of 8 swapped": (
        "lane % 8 + lane / 16 * 8) * kRow + (slice * kSliceDim + k * 16 + lane / 8 % 2 * 8)",
        "lane % 8 + lane / 8 % 2 * 8) * kRow + (slice * kSliceDim + k * 16 + lane / 16 * 8)",
    ),
    "P fragment: halves of 8 swapped": (
        "lane % 16) * kWeightRow + (k * 16 + lane / 16 * 8)",
        "lane % 8 + lane / 16 * 8) * kWeightRow + (k * 16 + lane / 8 % 2 * 8)",
    ),
    "V without transposition": ("ldmatrix_trans(b", "ldmatrix(b"),
    "V columns of the next warp": (
        "(warp * 64 + n * 16 + lane / 16 * 8) * 2)",
        "((warp ^ 1) * 64 + n * 16 + lane / 16 * 8) * 2)",
    ),
    "scores: rows 8 apart swapped": (
        "m * 16 + group + h * 8) * kScoreRow",
        "m * 16 + group + (h ^ 1) * 8) * kScoreRow",
    ),
    "mask one position late": ("first + j * 8 + i < left ?", "first + j * 8 + i < left + 1 ?"),
    "mask one position early": ("first + j * 8 + i < left ?", "first + j * 8 + i < left - 1 ?"),
    "no mask": ("first + j * 8 + i < left ?", "true ?"),
    "last row of a piece is zero": (
        "rows + row * kDim + k, begin + row < end)",
        "rows + row * kDim + k, begin + row < end - 1)",
    ),
    "three of four slices added": ("sl = 1; sl < kSlices", "sl = 1; sl < kSlices - 1"),
    "sum of weights not rescaled": ("fma_rn(row_sum, keep, tile_sum)", "add_rn(row_sum, tile_sum)"),
    "output not rescaled": ("mul_rn(out[m][n][2 * h + i], factor)", "out[m][n][2 * h + i]"),
    "output rescaled by the other half's factor": (
        "kKeepAt + (m * 16 + group + h * 8)",
        "kKeepAt + (m * 16 + group + (h ^ 1) * 8)",
    ),
    "maximum over 4 of 8 lanes": (
        "mask = 1; mask < 8; mask *= 2) { const float other",
        "mask = 1; mask < 4; mask *= 2) { const float other",
    ),
    "sum over 4 of 8 lanes": ("mask < 8; mask *= 2) tile_sum", "mask < 4; mask *= 2) tile_sum"),
    "running maximum forgotten": ("tile_max = row_max;", "tile_max = minus_infinity();"),
    "block table ignored": ("load_global(block_table + begin / kTile)", "begin / kTile"),
    "block table of the first token": ("block_tables + piece.token * block_table_stride", "block_tables"),
    "query of the first token": ("load_query(shared, piece.token)", "load_query(shared, 0)"),
    "rope part of the query shifted": ("kRope + k - kLora", "kRope + (k - kLora) / 2"),
    "stage never changes": ("parity ^= 1", "parity ^= 0"),
    "one more tile than there is": ("if (begin + kTile < piece.end)", "if (begin + kTile <= piece.end)"),
    "results of the block before": (
        "store_global(maxima + block_idx() * kHeads",
        "store_global(maxima + block_idx() / 2 * kHeads",
    ),
    "rows not padded": ("kRow = (kDim + 8) * 2", "kRow = kDim * 2"),
    "weights not padded": ("kWeightRow = (kTile + 8) * 2", "kWeightRow = kTile * 2"),
    "rows aligned to 8 bytes": ("kRow = (kDim + 8) * 2", "kRow = (kDim + 4) * 2"),
    "too little shared memory": ("kSharedBytes = kKeepAt + kHeads * 4", "kSharedBytes = kKeepAt + kHeads * 2"),
}

"""The registration of cuda/kernels/mla_prefill_keys.h for the mutation proof (prove.py)."""

KERNELS = [
    "longcat::gpu::MlaPrefillKeys<longcat::DType::bf16>",
    "longcat::gpu::MlaPrefillKeys<longcat::DType::f8_e4m3>",
    "longcat::gpu::MlaPrefillKeys<longcat::DType::bf16, 64>",
]
SOURCES = ["cuda/kernels/mla_prefill_keys.h", "cuda/kernels/store_pairs.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    # work
    "every block the first group": ("index % groups * heads_of_block", "0"),
    "tile of the next group": ("kTileRows>(index / groups)", "kTileRows>(index / (groups + 1))"),
    "keys counted as queries": ("chunks.find<true,", "chunks.find<false,"),
    "a block has all its heads": ("left < heads_of_block ? left : heads_of_block", "heads_of_block"),
    "a tile in place of its chunk's": ("int64_t{item.first_key_tile} * kKeyTile + item.number", "item.number"),
    "the first tile of the chunk": ("* kKeyTile + item.number * kTileRows;", "* kKeyTile;"),
    "heads side by side": ("((first_head + head) * num_positions + first_row)", "(head * num_positions + first_row)"),
    # gathering
    "the table of the first sequence": ("block_tables + item.sequence * block_table_stride", "block_tables"),
    "rows behind the end": ("position < item.end();", "position <= item.end();"),
    "the last row left out": ("position < item.end();", "position + 1 < item.end();"),
    "positions of the first tile": ("position = item.number * kTileRows + row", "position = row"),
    "slot of the next position": ("position % kBlock * kRowBytes", "(position + 1) % kBlock * kRowBytes"),
    "one cache block": ("load_global(table + position / kBlock)", "load_global(table)"),
    "fp8: scale of the first group": ("+ k / Fp8Latent::kGroup)", ")"),
    "fp8: not scaled": ("mul_rn(low_bf16(pairs.v[j]), scale)", "low_bf16(pairs.v[j])"),
    "fp8: halves swapped": ("bf16_of_e4m3(codes.v[i])", "bf16_of_e4m3(codes.v[i ^ 1])"),
    "fp8: pairs swapped": ("words.v[2 * i + j] =", "words.v[2 * (i ^ 1) + j] ="),
    "fp8: NaN codes": ("if (nan_codes(codes.v[i]))", "if (false)"),
    # weights
    "weights of the first head": ("first_head + step / (2 * kSteps)", "first_head"),
    "weights of the block's head": ("head = first_head + step / (2 * kSteps)", "head = step / (2 * kSteps)"),
    "keys and values swapped": ("step % (2 * kSteps) >= kSteps", "step % (2 * kSteps) < kSteps"),
    "rows of 4 copies side by side": ("copy / 32 * 8 + copy % 8;", "copy / 4;"),
    "the same step again": ("k = step % kSteps * kStep", "k = step % 2 * kStep"),
    "a stage too far": ("step + kStages - 1, num_steps);", "step + kStages, num_steps);"),
    "steps behind the last": ("if (step < num_steps) {", "if (step <= num_steps) {"),
    # products
    "A fragment: rows and columns swapped": (
        "(row + m * 16 + lane % 16) * kRow + (part * kStep + k + lane / 16 * 8) * 2",
        "(row + m * 16 + lane / 2) * kRow + (part * kStep + k + lane % 2 * 8) * 2",
    ),
    "latents of the first step": ("(part * kStep + k + lane / 16 * 8) * 2", "(k + lane / 16 * 8) * 2"),
    "k_up without transposition": ("ldmatrix_trans(b, stage", "ldmatrix(b, stage"),
    "v_up: halves of 8 swapped": (
        "(first + lane % 8 + lane / 16 * 8) * kValueRow + (k + lane / 8 % 2 * 8)",
        "(first + lane % 8 + lane / 8 % 2 * 8) * kValueRow + (k + lane / 16 * 8)",
    ),
    "k_up: halves of 8 swapped": (
        "(k + lane % 16) * kKeyRow + (first + lane / 16 * 8)",
        "(k + lane % 8 + lane / 16 * 8) * kKeyRow + (first + lane / 8 % 2 * 8)",
    ),
    "rows of half of the warps": ("row = warp_idx() % kRowWarps * 32", "row = warp_idx() % (kRowWarps / 2) * 32"),
    "half of the columns": (
        "column = warp_idx() / kRowWarps * kColumns",
        "column = warp_idx() / (2 * kRowWarps) * kColumns",
    ),
    # results
    "rows 8 apart swapped": ("row + m * 16 + h * 8 + lane / 4;", "row + m * 16 + (h ^ 1) * 8 + lane / 4;"),
    "pairs not exchanged": ("shuffle_xor(odd ? low : high, 1)", "odd ? low : high"),
    "the other pair exchanged": ("shuffle_xor(odd ? low : high, 1)", "shuffle_xor(odd ? high : low, 1)"),
    "pairs in the other order": ("odd ? Word2{other, high} : Word2{low, other}", "Word2{low, other}"),
    "columns of the other half": ("(odd ? 8 : 0)", "(odd ? 0 : 8)"),
    "columns of the lane's pair": ("lane_idx() % 4 / 2 * 4;", "lane_idx() % 4 * 2;"),
    "values that are not finite": ("breaks |= clear_broken(pairs[i]);", ""),
    "a broken value's key": ("if (is_broken) pairs[i] = 0x7fff7fffu;", ""),
    "broken for all heads behind": (
        "shared + kBrokenAt + at * 4) == head;",
        "shared + kBrokenAt + at * 4) > 0;",
    ),
    "the low value stays": ("if (low) pair &= 0xffff0000u;", ""),
    "the high value stays": ("if (high) pair &= 0x0000ffffu;", ""),
    "only low values break": ("return low || high;", "return low;"),
    "only high values break": ("return low || high;", "return high;"),
    "marks not cleared": ("if (thread_idx() < kTileRows) store_shared", "if (false) store_shared"),
    # layout
    "rows not padded": ("kRow = (kLora + 8) * 2;", "kRow = kLora * 2;"),
    "rows of k_up not padded": ("kKeyRow = (kWidth + 8) * 2", "kKeyRow = kWidth * 2"),
    "rows of v_up 192 bytes apart": ("kValueRow = (kStep + 8) * 2", "kValueRow = (kStep + 32) * 2"),
    "too little shared memory": ("kSharedBytes = kBrokenAt + kTileRows * 4;", "kSharedBytes = kBrokenAt;"),
}

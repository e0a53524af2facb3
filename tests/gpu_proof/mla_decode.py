"""The registration of cuda/kernels/mla_decode.h for the mutation proof (prove.py)."""

KERNELS = [
    "longcat::gpu::MlaDecode<longcat::DType::bf16, 32>",
    "longcat::gpu::MlaDecode<longcat::DType::f8_e4m3, 16>",
    "longcat::gpu::MlaDecode<longcat::DType::bf16, 16, false, 32>",
]
SOURCES = ["cuda/kernels/mla_decode.h", "cuda/kernels/e4m3_pairs.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    # Q K^T
    "Q fragment: rows and columns swapped": (
        "lane % 16) * kRow + (column(slice, k) + lane / 16 * 8)",
        "lane / 2) * kRow + (column(slice, k) + lane % 2 * 8)",
    ),
    "K fragment: halves of 8 swapped": (
        "lane % 8 + lane / 16 * 8) * kRow + (column(slice, k) + lane / 8 % 2 * 8)",
        "lane % 8 + lane / 8 % 2 * 8) * kRow + (column(slice, k) + lane / 16 * 8)",
    ),
    "rope part of the first slice": ("kLora + slice * 16;", "kLora;"),
    "rope part one step late": ("k < kSliceLora / 16 ?", "k <= kSliceLora / 16 ?"),
    "scores: rows 8 apart swapped": (
        "m * 16 + group + h * 8) * kScoreRow",
        "m * 16 + group + (h ^ 1) * 8) * kScoreRow",
    ),
    "three of four slices added": ("sl = 1; sl < kSlices", "sl = 1; sl < kSlices - 1"),
    "scores of the other half": ("(half * kHalf + n * 8 + pair) * 4", "((half ^ 1) * kHalf + n * 8 + pair) * 4"),
    # softmax
    "mask one position late": ("first + j * 8 + i < left ?", "first + j * 8 + i < left + 1 ?"),
    "mask one position early": ("first + j * 8 + i < left ?", "first + j * 8 + i < left - 1 ?"),
    "no mask": ("first + j * 8 + i < left ?", "true ?"),
    "sum of weights not rescaled": ("fma_rn(row_sum, keep, tile_sum)", "add_rn(row_sum, tile_sum)"),
    "maximum over 4 of 8 lanes": (
        "mask = 1; mask < 8; mask *= 2) { const float other",
        "mask = 1; mask < 4; mask *= 2) { const float other",
    ),
    "sum over 4 of 8 lanes": ("mask < 8; mask *= 2) tile_sum", "mask < 4; mask *= 2) tile_sum"),
    "running maximum forgotten": ("tile_max = row_max;", "tile_max = minus_infinity();"),
    "softmax of half the heads": ("if (warp < kHeads / 4) softmax", "if (warp < kHeads / 8) softmax"),
    # P V
    "P fragment: halves of 8 swapped": (
        "lane % 16) * kWeightRow + (k * 16 + lane / 16 * 8)",
        "lane % 8 + lane / 16 * 8) * kWeightRow + (k * 16 + lane / 8 % 2 * 8)",
    ),
    "V without transposition": ("ldmatrix_trans(b", "ldmatrix(b"),
    "V columns of the next warp": (
        "(warp * 64 + n * 16 + lane / 16 * 8) * 2)",
        "((warp ^ 1) * 64 + n * 16 + lane / 16 * 8) * 2)",
    ),
    "sums not rescaled": ("mul_rn(out_sums[m][n][2 * h + i], factor)", "out_sums[m][n][2 * h + i]"),
    "sums rescaled by the other half's factor": (
        "kKeepAt + (m * 16 + group + h * 8)",
        "kKeepAt + (m * 16 + group + (h ^ 1) * 8)",
    ),
    # queries and tiles
    "block table ignored": (
        "load_global(block_tables + work.item.sequence * block_table_stride + begin / kBlock)",
        "begin / kBlock + 1",
    ),
    "block table of the first sequence": ("block_tables + work.item.sequence * block_table_stride", "block_tables"),
    "the first half of a block": ("kTile < kBlock ? begin % kBlock * kRowBytes : 0u", "0u"),
    "blocks without what lies between": ("block * block_bytes", "block * kBlock * kRowBytes"),
    "last row of a tile is zero": (
        "rows + row * kRowBytes + at, begin + row < end)",
        "rows + row * kRowBytes + at, begin + row < end - 1)",
    ),
    "rows behind the end": ("rows + row * kRowBytes + at, begin + row < end)", "rows + row * kRowBytes + at)"),
    "end of the item's first token": ("end = work.end(work.item.count - 1);", "end = work.end(0);"),
    "query of the item's first token": (
        "row = work.item.token + token, first_head",
        "row = work.item.token, first_head",
    ),
    "query of the next token": (
        "token > 0 ? token - 1 : work.item.count - 1);",
        "token > 0 ? token : work.item.count - 1);",
    ),
    "first query of an item: its first token": (
        "load_query(shared, first_work, first_work.item.count - 1)",
        "load_query(shared, first_work, 0)",
    ),
    "next query of an item: its first token": ("token - 1 : work.item.count - 1);", "token - 1 : 0);"),
    "heads of the first block": ("first_head = work.head_block * kHeads;", "first_head = 0;"),
    "rope part of the query shifted": ("q_rope_strides[1] + k - kLora)", "q_rope_strides[1] + (k - kLora) / 2)"),
    "rows of a group stay": ("if (token + 1 < count) {", "if (false) {"),
    "rows of a group: one too few": (
        "work.end(token), work.end(token + 1))",
        "work.end(token) + 1, work.end(token + 1))",
    ),
    "rows of a group: the first half": ("thread_idx() >= kRowCopies", "thread_idx() >= kRowCopies / 2"),
    "rows of a group in the other stage": ("first ^ ((position", "first ^ 1 ^ ((position"),
    "rows of a group one further": (
        "position % kTile * kStageRow + thread_idx()",
        "(position + 1) % kTile * kStageRow + thread_idx()",
    ),
    "stage never changes": ("begin += kTile, stage ^= 1)", "begin += kTile)"),
    "next item in the same stage": ("first_stage = stage ^ 1;", "first_stage = stage;"),
    "tiles of a group load again": ("ends_item || (!is_last && loads)", "ends_item || !is_last"),
    "one tile too many": ("begin + kTile >= end;", "begin + kTile > end;"),
    "next item loads early": ("ends_item = is_last && token == 0", "ends_item = is_last"),
    "next item not loaded": ("if (ends_item || (!is_last", "if ((!is_last"),
    "this item again": ("load_work(ends_item ? following_at : work_at)", "load_work(work_at)"),
    "query of this item again": ("load_work(token > 0 ? work_at : following_at)", "load_work(work_at)"),
    # fp8
    "codes without signs": ("(halves[i] & 0x80008000u) |", ""),
    "codes: other exponents": ("0x7f007f00u) >> 4)", "0x7f007f00u) >> 5)"),
    "codes: neighbours swapped": (
        "(codes << 8 & 0xff00u) | (codes << 16 & 0xff000000u)",
        "(codes & 0xff00u) | (codes << 24 & 0xff000000u)",
    ),
    "codes: upper half": (
        "(codes >> 8 & 0xff00u) | (codes & 0xff000000u)",
        "(codes & 0xff00u) | (codes & 0xff000000u)",
    ),
    "NaN codes": ("if (nan_codes(codes.v[0]) | nan_codes(codes.v[1]))", "if (false)"),
    "NaN codes: only the first four": ("nan_codes(codes.v[0]) | nan_codes(codes.v[1])", "nan_codes(codes.v[0])"),
    "448 is NaN": ("+ 0x01010101u) & 0x80808080u", "+ 0x02020202u) & 0x80808080u"),
    "rope part of fp8 not moved": ("(kLora + k) * 2, load_shared<Word4>", "(kLora + (k ^ 8)) * 2, load_shared<Word4>"),
    "scales of the next group": ("kScalesInRow + scale * 4)", "kScalesInRow + (scale ^ 1) * 4)"),
    "scores not scaled": ("if (k * 16 == kSliceLora) scale_scores", "if (false) scale_scores"),
    "scores scaled by the other half's": ("s, slice, half * kHalf + pair)", "s, slice, (half ^ 1) * kHalf + pair)"),
    "scores scaled by the first group's": ("kScalesAt + slice * kScaleRow", "kScalesAt"),
    "scores scaled by the neighbour's": ("scale.v[i % 2])", "scale.v[i / 2])"),
    "weights not scaled": ("mul_rn(p.v[i], scale.v[i])", "p.v[i]"),
    "weights scaled by the first group's": ("kScalesAt + g * kScaleRow", "kScalesAt"),
    "weights of the first group": ("kFp8 ? warp / 2 * kHeads", "kFp8 ? 0 * kHeads"),
    # results
    "slots of the first token": ("work.item.token + token - first_token}", "work.item.token - first_token}"),
    "slots of the batch": ("work.item.token + token - first_token}", "work.item.token + token}"),
    "slots of the first head block": ("* head_blocks + work.head_block;", "* head_blocks;"),
    "slots of the first piece": ("place * num_pieces + work.item.piece;", "place * num_pieces;"),
    "sums of the next warp's columns": (
        "kLora + warp * 64 + n * 8 + pair), Float2",
        "kLora + (warp ^ 1) * 64 + n * 8 + pair), Float2",
    ),
    "weights of one lane more": ("lane % 8 == 0) { store_global(maxima", "lane % 8 <= 1) { store_global(maxima"),
    "pieces of the item's first token": (
        "kv_piece_index(work.item.position + token) + 1",
        "kv_piece_index(work.item.position) + 1",
    ),
    "arrival without order": ("arrive(counter, 1u)", "atomic_add_global(counter, 1u)"),
    "the first to arrive adds": ("static_cast<uint32_t>(count) - 1;", "0u;"),
    "the counter is left": ("if (is_last && thread_idx() == 0) store_global(counter, 0u);", ""),
    "every block adds": (
        "if (!is_last_of(shared, counters + segment, left < kSegment ? left : kSegment)) return;",
        "is_last_of(shared, counters + segment, left < kSegment ? left : kSegment);",
    ),
    "one counter for all segments": ("is_last_of(shared, counters + segment,", "is_last_of(shared, counters,"),
    "every segment ends the token": (
        "if (segments == 1 || !is_last_of(shared, counters + num_segments(), segments)) return;",
        "if (segments == 1) return;",
    ),
    "one counter for segments and tokens": ("counters + num_segments(), segments)", "counters, segments)"),
    "counters of the first token": ("arrivals + place * (num_segments() + 1)", "arrivals"),
    "counters of the next token": ("arrivals + place * (num_segments() + 1)", "arrivals + place * num_segments()"),
    "a piece of a segment is left out": (
        "left < kSegment ? left : kSegment, segments == 1",
        "left < kSegment ? left : kSegment - 1, segments == 1",
    ),
    "pieces of the first segment": ("add(slot + segment * kSegment, 1,", "add(slot, 1,"),
    "segments side by side": ("add(slot, kSegment, segments, to)", "add(slot, 1, segments, to)"),
    "the first segment alone": ("add(slot, kSegment, segments, to)", "add(slot, kSegment, 1, to)"),
    "results of the item's first token": (
        "out + (work.item.token + token) * out_strides[0]",
        "out + work.item.token * out_strides[0]",
    ),
    "results of the first heads": ("+ work.head_block * kHeads * out_strides[1]", ""),
    "largest piece: none": ("most = max > most ? max : most;", "most = max;"),
    "pieces not rescaled": ("exp2_approx(load_global(maxima + row) - most)", "1.0f"),
    "weights of pieces not added": ("fma_rn(load_global(weights + row), factor, weight)", "load_global(weights + row)"),
    "columns of one lane for all": ("first = thread_idx() % kShare * 4;", "first = 0;"),
    "columns of the neighbour": ("from + j * kShare * 4));", "from + (j ^ 1) * kShare * 4));"),
    "not divided by the weights": ("inverse = 1.0f / weight;", "inverse = 1.0f;"),
    "maximum of a segment is left": ("store_global(maxima + row, most);", ""),
    "weight of a segment is left": ("store_global(weights + row, weight);", ""),
    # the list
    "every second item": (
        "index < count && work.item.count == 0; index += static_cast<int32_t>(num_blocks()))",
        "index < count && work.item.count == 0; index += 2 * static_cast<int32_t>(num_blocks()))",
    ),
    "all blocks take all items": (
        "work.item.count == 0; index += static_cast<int32_t>(num_blocks()))",
        "work.item.count == 0; ++index)",
    ),
    "an item without tokens ends the list": (
        "index < count && work.item.count == 0;",
        "index < count && work.end(0) == 0;",
    ),
    "one head block": (
        "(tokens.first_item(last_token) - before) * head_blocks;",
        "tokens.first_item(last_token) - before;",
    ),
    "items of the first launch": (
        "tokens.item_at(before + index / head_blocks,",
        "tokens.item_at(index / head_blocks,",
    ),
    # layout
    "rows not padded": ("kRow = (kDim + 8) * 2", "kRow = kDim * 2"),
    "weights not padded": ("kWeightRow = (kTile + 8) * 2", "kWeightRow = kTile * 2"),
    "scores not padded": ("kScoreRow = (kTile + 8) * 4", "kScoreRow = kTile * 4"),
    "scales not padded": ("kScaleRow = (kTile + 8) * 4", "kScaleRow = kTile * 4"),
    "rows aligned to 8 bytes": ("kRow = (kDim + 8) * 2", "kRow = (kDim + 12) * 2"),
    "too little shared memory": ("kSharedBytes = kArrivedAt + 16", "kSharedBytes = kArrivedAt"),
}

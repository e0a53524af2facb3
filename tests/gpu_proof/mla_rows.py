"""The registration of cuda/kernels/mla_rows.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::SelectedBf16", "longcat::gpu::SelectedFp8"]
SOURCES = ["cuda/kernels/mla_rows.h", "tests/gpu_proof/mla_selected.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "the list of the first token": ("selected + token * stride", "selected"),
    "no list": ("tokens.selects(token) ?", "false ?"),
    "lists for all": ("tokens.selects(token) ?", "true ?"),
    "positions without the list": ("list ? load_global(list + index) : index;", "index;"),
    "rows of the first half": ("row = first + thread_idx() / kOfRow;", "row = thread_idx() / kOfRow;"),
    "beyond the list": ("index = begin + row < end ? begin + row : end - 1;", "index = begin + row;"),
    "one row for all": ("position % kBlock * kRowBytes;", "begin % kBlock * kRowBytes;"),
    "the block of the index": ("block_table + position / kBlock", "block_table + index / kBlock"),
    "rows too short": ("if (at < kRowBytes) cp_async", "if (at + 16 < kRowBytes) cp_async"),
    "rows too long": ("if (at < kRowBytes) cp_async", "cp_async"),
}

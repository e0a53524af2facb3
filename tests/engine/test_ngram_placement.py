"""N-gram tables on disk: only pages that hold looked up rows are read."""

import json
import mmap
import os
import re

import longcat
import pytest
from checkpoints import random_token_ids
from longcat import _core
from longcat._core import testing
from longcat.make_checkpoint import preset_config, write_checkpoint
from parallel.ranks import ThreadJob
from reference import ops as reference

FILE = "model.safetensors"


def forget(path):
    """Gives the pages of a file back that no process has mapped."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pages_of_rows(folder, ids, shard):
    """How many pages of the file hold the rows `ids` [tokens, tables] that are with the rank of `shard`."""
    pages = set()
    for name, _, shape, _, begin, end in _core.Checkpoint(str(folder)).tensors():
        if found := re.match(r"model\.ngram_embeddings\.embedders\.(\d+)\.", name):
            row_bytes, (low, high) = (end - begin) // shape[0], shard["tables"].get(int(found[1]), (0, 0))
            for first in (begin + row_bytes * int(row) for row in ids[:, int(found[1])] if low <= row < high):
                pages |= {first // mmap.PAGESIZE, (first + row_bytes - 1) // mmap.PAGESIZE}
    return len(pages)


@pytest.mark.parametrize("ranks", [1, 2])
def test_only_pages_of_wanted_rows_are_read(tmp_path, ranks):
    """Each rank has a copy of the checkpoint, as on several machines, and reads the rows that it has."""
    config = preset_config("tiny", {"ngram_vocab_size_ratio": 6000, "n_routed_experts": 8})
    folders = [tmp_path / str(rank) for rank in range(ranks)]
    for folder in folders:
        write_checkpoint(folder, config)
        forget(folder / FILE)
    file_bytes = (folders[0] / FILE).stat().st_size
    if testing.cached_table_bytes(str(folders[0])) > file_bytes / 4:
        pytest.skip("this file system keeps its pages in memory")
    prompt = random_token_ids(1, 200, config["vocab_size"])
    ids = reference.ngram_ids(prompt, config)

    def engine_of_rank(_, options, communicator):
        return _core.Engine(str(folders[communicator.rank]), options, communicator=communicator)

    with ThreadJob("", 1, ranks, make=engine_of_rank, ngram_placement="disk") as job:
        for folder in folders:
            forget(folder / FILE)
        job.leader.forward([3])  # reads all that is multiplied, and the system what lies beside it
        loaded = [testing.cached_table_bytes(str(folder)) for folder in folders]
        job.leader.forward(prompt)
    for rank, folder in enumerate(folders):
        read = testing.cached_table_bytes(str(folder)) - loaded[rank]
        shard = _core.shard(json.dumps(config), 1, ranks, rank)
        wanted = mmap.PAGESIZE * pages_of_rows(folder, ids, shard)
        assert wanted / 2 < read <= wanted < file_bytes / 4, rank


@pytest.mark.parametrize("placement", ["host", "device", "moon"])
def test_placements_that_the_cpu_has_not(random_checkpoint, placement):
    with pytest.raises(ValueError, match=f'ngram_placement="{placement}" is not possible on cpu: use "auto" or "disk"'):
        longcat.Engine(random_checkpoint, ngram_placement=placement)

"""N-gram tables on disk: only pages that hold looked up rows are read."""

import mmap
import os

import longcat
import pytest
from checkpoints import random_token_ids
from longcat._core import testing
from longcat.make_checkpoint import preset_config, write_checkpoint


def test_only_pages_of_wanted_rows_are_read(tmp_path):
    config = preset_config("tiny", {"ngram_vocab_size_ratio": 6000})
    write_checkpoint(tmp_path, config)
    [file] = tmp_path.glob("*.safetensors")
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if testing.cached_table_bytes(str(tmp_path)) > file.stat().st_size / 4:
        pytest.skip("this file system keeps its pages in memory")
    tokens = 200
    with longcat.Engine(tmp_path, ngram_placement="disk") as engine:
        loaded = testing.cached_table_bytes(str(tmp_path))
        engine.generate(prompt_token_ids=random_token_ids(1, tokens, config["vocab_size"]), max_tokens=1)
    read = testing.cached_table_bytes(str(tmp_path)) - loaded
    most = 12 * (tokens + 1) * 2 * mmap.PAGESIZE  # a row may lie in two pages
    assert most / 8 < read <= most < file.stat().st_size / 4


@pytest.mark.parametrize("placement", ["host", "device", "moon"])
def test_placements_that_the_cpu_has_not(random_checkpoint, placement):
    with pytest.raises(ValueError, match=f'ngram_placement="{placement}" is not possible on cpu: use "auto" or "disk"'):
        longcat.Engine(random_checkpoint, ngram_placement=placement)

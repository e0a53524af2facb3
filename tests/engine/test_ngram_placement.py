"""Where N-gram tables lie: on disk, of which only pages with looked up rows are read, in host memory, on the device."""

import json
import math
import mmap
import re

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.random_weights import preset_config, tensor_specs, write_checkpoint
from longcat.checkpoint.writer import header

from reference import ops as reference
from support.checkpoints import forget, random_token_ids
from support.devices import EMULATED, DeviceEngine, needs_gpu
from support.ranks import ThreadJob

FILE = "model.safetensors"


def cached_table_bytes(folder):
    return testing.cached_bytes(str(folder), r"^model\.(ngram_embeddings\.embedders\.|oe_embed_tokens)")


def tables_of(folder):
    """(number, offset in the file, bytes) of each table."""
    for name, _, _, _, begin, end in _core.Checkpoint(str(folder)).tensors():
        if found := re.match(r"model\.ngram_embeddings\.embedders\.(\d+)\.", name):
            yield int(found[1]), begin, end - begin


def pages_of_rows(folder, config, ids, shard):
    """How many pages of the file hold the rows `ids` [tokens, tables] that are with the rank of `shard`."""
    pages, row_bytes = set(), config["hidden_size"] // 12 * 2
    for table, begin, _ in tables_of(folder):
        low, high = shard["tables"].get(table, (0, 0))
        for first in (begin + row_bytes * int(row) for row in ids[:, table] if low <= row < high):
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
    if cached_table_bytes(folders[0]) > file_bytes / 4:
        pytest.skip("this file system keeps its pages in memory")
    prompt = random_token_ids(1, 200, config["vocab_size"])
    ids = reference.ngram_ids(prompt, config)

    def engine_of_rank(_, options, communicator):
        return _core.Engine(str(folders[communicator.rank]), options, communicator=communicator)

    with ThreadJob("", 1, ranks, make=engine_of_rank, ngram_placement="disk") as job:
        for folder in folders:
            forget(folder / FILE)
        job.leader.forward([3])  # reads all that is multiplied, and the system what lies beside it
        loaded = [cached_table_bytes(folder) for folder in folders]
        job.leader.forward(prompt)
    for rank, folder in enumerate(folders):
        read = cached_table_bytes(folder) - loaded[rank]
        shard = _core.shard(json.dumps(config), 1, ranks, rank)
        wanted = mmap.PAGESIZE * pages_of_rows(folder, config, ids, shard)
        assert wanted / 2 < read <= wanted < file_bytes / 4, rank


@pytest.mark.parametrize("placement", ["host", "device", "moon"])
def test_placements_that_the_cpu_has_not(random_checkpoint, placement):
    with pytest.raises(ValueError, match=f'ngram_placement="{placement}" on cpu; expected "auto" or "disk"'):
        longcat.Engine(random_checkpoint, ngram_placement=placement)


@pytest.mark.device
@pytest.mark.parametrize("placement", ["disk", "moon"])
def test_placements_that_cuda_has_not(random_checkpoint, placement):
    with pytest.raises(ValueError, match=f'"{placement}" on .*; expected "auto", "host" or "device"'):
        DeviceEngine(random_checkpoint, device=EMULATED, ngram_placement=placement)


# One table of three pieces of 64 MiB and a rest: loading reads a piece at a time.
PIECES = {"ngram_vocab_size_ratio": 8400, "emb_neighbor_num": 2, "emb_split_num": 1}


@pytest.mark.device
@pytest.mark.parametrize("device", [EMULATED, pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("fields", [{}, PIECES], ids=["tables", "pieces"])
def test_placement_changes_no_bit(tmp_path, device, fields):
    config = preset_config("tiny", fields)
    write_checkpoint(tmp_path, config)
    prompt = random_token_ids(2, 100, config["vocab_size"])
    models = [testing.DeviceModel(str(tmp_path), device, ngram_placement=name) for name in ("auto", "host", "device")]
    default, in_host_memory, on_device = (model.forward([([1, 2], 0, prompt)]) for model in models)
    assert np.array_equal(default, in_host_memory) and np.array_equal(on_device, in_host_memory)
    if device == EMULATED:
        default, in_host_memory, on_device = (model.emulated_bytes() for model in models)
        tables = [size for name, _, size in tables_of(tmp_path)]
        assert default == in_host_memory
        assert 0 <= on_device - in_host_memory - sum(tables) < 4096 * len(tables)  # each at a multiple of some bytes


@pytest.mark.device
def test_the_engine_looks_up_on_the_device(random_checkpoint):
    """Recorded steps, several requests."""
    prompts = [random_token_ids(i, 10 + i) for i in range(3)]
    completions = []
    for placement in ("host", "device"):
        with DeviceEngine(random_checkpoint, device=EMULATED, ngram_placement=placement) as engine:
            outputs = engine.generate(prompt_token_ids=prompts, max_tokens=8, temperature=0.0, logprobs=1)
            completions.append([(o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for o in outputs])
    assert completions[0] == completions[1]


@pytest.mark.device
def test_tables_without_room_on_the_device(tmp_path):
    """A table of 9 GiB, none of which is on the disk; the emulated device has 8."""
    config = preset_config("tiny", PIECES | {"ngram_vocab_size_ratio": 9 * 2**30 // (128 * 96 * 2)})
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = {name: spec.shape for name, spec in tensor_specs(config).items()}
    with (tmp_path / FILE).open("wb") as file:
        file.write(header((name, "BF16", shape, 2 * math.prod(shape)) for name, shape in sizes.items()))
        file.truncate(file.tell() + sum(2 * math.prod(shape) for shape in sizes.values()))
    with pytest.raises(longcat.OutOfMemoryError, match='; ngram_placement="host" keeps the N-gram tables out of there'):
        DeviceEngine(tmp_path, device=EMULATED, ngram_placement="device")

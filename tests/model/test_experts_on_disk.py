"""Where the matrices are larger than the memory, experts are read from the disk as the router picks them."""

import resource

import numpy as np
import pytest
from longcat import _testing as testing
from longcat.checkpoint.random_weights import preset_config, write_checkpoint

from support.checkpoints import forget, random_token_ids, read_all_but
from support.devices import EMULATED

EXPERTS = r"\.mlp\.experts\."
# A matrix of an expert has 24 pages. It may begin and end within one more, and its neighbours then count those, too.
CONFIG = preset_config("tiny", {"n_routed_experts": 64, "expert_ffn_hidden_size": 512})
BYTES_OF_EXPERT = 3 * (512 * CONFIG["hidden_size"] * 2 + 3 * 4096)


def disk_waits():
    """Page faults of this process that began a read from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def cold_model(folder):
    """A model none of whose experts are in memory, and all else is: what it reads later, it reads for experts."""
    forget(folder / "model.safetensors")
    model = testing.Model(str(folder), num_threads=2)
    read_all_but(folder / "model.safetensors", EXPERTS)
    return model


@pytest.mark.parametrize("num_tokens", [1, 20])
def test_only_picked_experts_are_read(tmp_path, num_tokens):
    write_checkpoint(tmp_path, CONFIG)
    prompt = random_token_ids(1, num_tokens, CONFIG["vocab_size"])
    expected = testing.Model(str(tmp_path), num_threads=2).forward([([1], 0, prompt)])
    model = cold_model(tmp_path)
    assert model.fit_into(0)
    everything = CONFIG["num_layers"] * CONFIG["n_routed_experts"] * BYTES_OF_EXPERT
    before, faults = testing.cached_bytes(str(tmp_path), EXPERTS), disk_waits()
    if before > BYTES_OF_EXPERT * 8:
        pytest.skip("this file system keeps its pages in memory")
    assert np.array_equal(model.forward([([1], 0, prompt)]), expected)
    read = testing.cached_bytes(str(tmp_path), EXPERTS) - before
    most_picked = min(num_tokens * CONFIG["moe_topk"], CONFIG["n_routed_experts"]) * CONFIG["num_layers"]
    # A kernel may read some neighbours of what it is asked for.
    assert 0 < read <= min(most_picked * BYTES_OF_EXPERT + everything / 10, everything * 3 / 4)
    # Pages are asked for before they are used: without that, each of them would be a fault that waits.
    assert disk_waits() - faults < read / 4096 / 8


def test_where_the_matrices_fit_nothing_changes(tmp_path):
    write_checkpoint(tmp_path, CONFIG)
    assert not testing.Model(str(tmp_path)).fit_into(2**40)


@pytest.mark.device
def test_experts_on_a_device_are_not_read_from_the_disk(tmp_path):
    """They stay beside the dense layers, however little memory the host has."""
    write_checkpoint(tmp_path, CONFIG)
    assert not testing.DeviceModel(str(tmp_path), EMULATED).fit_into(0)

"""The multi-token-prediction layer over explicit batches: against the reference, and the backends to each other."""

import numpy as np
import pytest
from longcat import _testing as testing

from reference.stored import stored_mtp
from support.checkpoints import make_checkpoint
from support.devices import EMULATED, EMULATED_F32, needs_gpu
from support.tolerances import BF16_MODEL, LOGITS, ROUTER_GAP

CASES = stored_mtp()
BLOCKS = [3, 1, 2]


def model_of(folder, device="cpu", dtype="f32", kv_cache_dtype="f32"):
    return testing.DeviceModel(str(folder), device, dtype=dtype, kv_cache_dtype=kv_cache_dtype, with_mtp=True)


def read(model, token_ids, chunks=(), generated=0):
    """Logits of forward_mtp behind forward over all tokens but the last; the last `generated` are of that kind."""
    logits, start = [], 0
    for end in [*chunks, len(token_ids) - 1]:
        kind = 1 if start >= len(token_ids) - 1 - generated else 0
        model.forward([(BLOCKS, start, token_ids[start:end])], num_generated=kind)
        logits.append(model.forward_mtp([(BLOCKS, start, token_ids[start + 1 : end + 1])], num_generated=kind))
        start = end
    return np.concatenate(logits)


def read_on(model, start, draft_ids, row):
    """Logits of each draft token, read with the layer's own hidden state: of row `row` for the first."""
    logits = []
    for i, draft_id in enumerate(draft_ids):
        logits.append(
            model.forward_mtp([(BLOCKS, start + i, [draft_id])], num_generated=1, rows=[row if i == 0 else 0])
        )
    return np.concatenate(logits)


@pytest.mark.device
@pytest.mark.parametrize("device", ["cpu", EMULATED_F32])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_logits_equal_the_reference(case, device, tmp_path):
    make_checkpoint(tmp_path, **case.recipe)
    model = model_of(tmp_path, device)
    ids = case.token_ids.tolist()
    # Where experts nearly tie, two correct f32 programs may pick differently, and what follows attends to that.
    unclear = np.flatnonzero(case.gaps.min(axis=0) <= ROUTER_GAP)
    clear = unclear[0] if len(unclear) else len(ids) - 1
    assert clear > 30
    found = read(model, ids)
    assert np.abs(found - case.logits)[:clear].max() <= LOGITS
    found = read_on(model, len(ids) - 1, case.draft_ids.tolist(), row=len(ids) - 2)
    if clear == len(ids) - 1:
        assert np.abs(found - case.draft_logits).max() <= LOGITS


def test_there_is_something_stored():
    assert sum((case.gaps > ROUTER_GAP).all() for case in CASES) >= 2  # of which the drafts, too, are compared


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtp")
    make_checkpoint(folder, seed=5, dtype="BF16", mtp=True)
    return folder


def ids_of(count, seed=0):
    return np.random.default_rng(seed).integers(3, 60, count).tolist()


@pytest.mark.device
@pytest.mark.parametrize("device", [EMULATED, pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "fp8"])
def test_bf16_is_near_the_cpus(checkpoint, device, kv_cache_dtype):
    ids, found = ids_of(100), []
    for name in (device, "cpu"):
        model = model_of(checkpoint, name, "bf16", kv_cache_dtype)
        found.append(np.concatenate([read(model, ids, chunks=(70, 96, 97, 98), generated=3),
                                     read_on(model, 99, [7, 8], row=0)]))  # fmt: skip
    error = np.abs(found[0] - found[1]).max(axis=1) / np.abs(found[1]).max(axis=1)
    assert np.median(error) < BF16_MODEL and np.mean(error < 4 * BF16_MODEL) > 0.9, error


@pytest.mark.device
@pytest.mark.parametrize("device", ["cpu", EMULATED, pytest.param("cuda", marks=needs_gpu)])
def test_bits_do_not_depend_on_chunks(checkpoint, device):
    ids = ids_of(100)
    runs = []
    for chunks in ((), (64,), (1, 63, 65, 90)):
        model = model_of(checkpoint, device, "bf16", "bf16")
        model.poison()
        runs.append(read(model, ids, chunks))
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])
    assert np.isfinite(runs[0]).all()

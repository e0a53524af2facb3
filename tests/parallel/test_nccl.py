"""Ranks on GPUs, without a GPU: the library's loader, sums on the device, and whole models on emulated devices.

A stand-in for NCCL moves the bytes between threads."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.support.child_process import environment

from support.checkpoints import make_checkpoint, random_token_ids, to_bf16
from support.collectives import expected_sum
from support.devices import EMULATED, EMULATED_F32
from support.engines import sampling
from support.layouts import MAX_ERROR, TINY, generate
from support.ranks import ThreadJob, all_well, on_ranks

pytestmark = pytest.mark.device


def load(named: str | None) -> str:
    """What a process that loads NCCL says."""
    program = """
import longcat
from longcat import _testing as testing
try:
    version, first, second = testing.nccl()
    print("version", version, len(first), first != second)
except longcat.Error as error:
    print(error)
"""
    env = environment() | ({"LONGCAT_NCCL": named} if named else {})
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True).stdout


def nccl_library() -> str | None:
    """Of the package nvidia-nccl, if it is installed, or where LONGCAT_TEST_NCCL says."""
    if named := os.environ.get("LONGCAT_TEST_NCCL"):
        return named
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return None
    for folder in spec.submodule_search_locations if spec is not None else ():
        if (path := Path(folder, "lib", "libnccl.so.2")).exists():
            return str(path)
    return None


@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_library_that_cannot_be_loaded(tmp_path, content):
    path = tmp_path / "libnccl.so.2"
    if content:
        path.write_bytes(content)
    said = load(str(path))
    assert said.startswith("[nccl] ranks on GPUs need libnccl.so.2, which cannot be loaded (") and str(path) in said
    assert "pip install nvidia-nccl-cu12, or set LONGCAT_NCCL to its path" in said


def test_a_library_of_another_kind():
    assert load("libm.so.6") == "[nccl] the library has no ncclGetVersion: expected NCCL 2.19 or later\n"


@pytest.mark.skipif(nccl_library() is None, reason="no NCCL (pip install --no-deps nvidia-nccl-cu12)")
def test_the_library_itself():
    word, version, length, differ = load(nccl_library()).split()
    assert word == "version" and int(version) >= 21900 and length == "128" and differ == "True"


OVER_PEERS = "sums up to {} KiB over peer memory, larger ones by NCCL"
BY_NCCL = "sums by NCCL (not over peer memory: {})"


@pytest.fixture
def way_of_sums(monkeypatch):
    """Sets LONGCAT_ALL_REDUCE."""
    return lambda way: monkeypatch.setenv("LONGCAT_ALL_REDUCE", way)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("blocks", [3, 40_000])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("way", ["peers", "nccl"])
def test_collectives_on_devices(way_of_sums, size, blocks, narrow, way):
    """Small ones, and ones beyond what every rank sums by itself; the bits are those of ranks on the host."""
    way_of_sums(way)
    count = size * blocks
    values = [np.random.default_rng(r).standard_normal(count).astype(np.float32) for r in range(size)]

    def work(ranks):
        return testing.device_collectives(ranks, values[ranks.rank], narrow)

    found = all_well(on_ranks(size, work))
    stored = [to_bf16(v) if narrow else v for v in values]
    total = expected_sum(stored)
    ids = [s.view(np.int32) for s in stored if s.nbytes % 4 == 0]
    for rank in range(size):
        mine = slice(rank * blocks, (rank + 1) * blocks)
        result = found[rank]
        kib = min(512, 2 * -(-total.nbytes // 2048))  # a slot has whole blocks of 2 KiB
        said = OVER_PEERS.format(kib) if way == "peers" else BY_NCCL.format("LONGCAT_ALL_REDUCE=nccl")
        assert result["way"].decode() == said
        assert result["all_reduce"] == total.tobytes()
        assert result["all_gather"] == np.concatenate(stored).tobytes()
        assert result["all_to_all"] == np.concatenate([s[mine] for s in stored]).tobytes()
        assert result["reduce_scatter"] == total[mine].tobytes()
        assert result["broadcast"] == stored[-1].tobytes()
        if ids:
            assert result["all_reduce_i32"][: ids[0].nbytes] == sum(ids[1:], start=ids[0]).tobytes()


def collectives_of_ones(size: int) -> list:
    return on_ranks(size, lambda ranks: testing.device_collectives(ranks, np.ones(size * 8, np.float32), False))


@pytest.fixture
def fail_peers():
    """Makes one of the ranks refuse peer memory."""
    yield testing.fail_emulated_peers
    testing.fail_emulated_peers("")


@pytest.mark.parametrize(
    "step, why",
    [
        ("share", "a test made this device share no memory"),
        ("map", "a test made this device map no memory"),
        ("machine", "ranks are on several machines"),
    ],
)
def test_peer_memory_that_one_rank_refuses(fail_peers, way_of_sums, step, why):
    """All ranks fall back, and say why; who wants peer memory and nothing else gets an error."""
    fail_peers(step)
    for result in all_well(collectives_of_ones(3)):
        assert result["way"].decode() == BY_NCCL.format(why)
        assert result["all_reduce"] == np.full(24, 3, np.float32).tobytes()
    for result in all_well(collectives_of_ones(3)):  # nothing is left of the refusal
        assert result["way"].decode() == OVER_PEERS.format(2)
    way_of_sums("peers")
    fail_peers(step)
    for error in collectives_of_ones(3):
        with pytest.raises(_core.Error, match=re.escape(f"LONGCAT_ALL_REDUCE=peers cannot be met: {why}")):
            raise error


def test_more_ranks_than_peers():
    for result in all_well(collectives_of_ones(9)):
        assert result["way"].decode() == BY_NCCL.format("9 ranks are more than 8")
        assert result["all_reduce"] == np.full(72, 9, np.float32).tobytes()


def test_a_way_that_does_not_exist(way_of_sums):
    way_of_sums("fast")
    for error in collectives_of_ones(2):
        with pytest.raises(ValueError, match='LONGCAT_ALL_REDUCE="fast"; expected "auto", "nccl" or "peers"'):
            raise error


def test_a_stopped_sum_ends():
    """Without the other rank, whose values it waits for."""
    assert all_well(on_ranks(2, testing.stop_peer_sum)) == [True, True]


@pytest.mark.parametrize("count", [1, 3000])
def test_a_recorded_sum_is_replayed(count):
    """The epochs advance on the device: each replay waits for the others' next values."""
    assert all_well(on_ranks(4, lambda ranks: testing.replay_peer_sum(ranks, count, 9))) == [4.0**9] * 4


def device_job(folder: str, tp: int, ep: int, device: str, **options) -> ThreadJob:
    """Engines on emulated devices, whose sums go through the stand-in."""
    make = functools.partial(testing.open_engine, fake_nccl=True)
    return ThreadJob(folder, tp, ep, make=make, device=device, **options)


@pytest.mark.parametrize(
    "tp, ep, tables, way",
    [
        (2, 1, "host", "peers"),
        (1, 2, "device", "nccl"),
        (2, 4, "device", "peers"),
        (4, 2, "host", "nccl"),
        (1, 8, "device", "peers"),
    ],
)
def test_models_on_devices(tmp_path, way_of_sums, tp, ep, tables, way):
    """All kernels of the CUDA backend, walked on the host, each rank with its share: logits and tokens of one rank."""
    way_of_sums(way)
    make_checkpoint(tmp_path, seed=1, config_overrides=TINY)
    prompt = random_token_ids(5, 40)
    options = {"device": EMULATED_F32, "dtype": "f32", "max_num_seqs": 2, "max_num_batched_tokens": 32}
    with device_job(str(tmp_path), 1, 1, **options) as job:
        token_ids = generate(job, prompt, 12)
        expected = job.leader.forward(prompt)
    with device_job(str(tmp_path), tp, ep, ngram_placement=tables, **options) as job:
        said = job.leader.info()["all_reduce"]
        assert ("over peer memory, larger" in said) == (way == "peers"), said
        assert generate(job, prompt, 12) == token_ids
        assert np.abs(job.leader.forward(prompt) - expected).max() <= MAX_ERROR


def test_bf16_on_devices(tmp_path):
    """Activations and sums in bf16."""
    make_checkpoint(tmp_path, seed=1, dtype="BF16", config_overrides=TINY)
    prompt = random_token_ids(6, 60)
    options = {"device": EMULATED, "max_num_seqs": 2, "max_num_batched_tokens": 64}
    with device_job(str(tmp_path), 1, 1, **options) as job:
        expected = job.leader.forward(prompt)
    with device_job(str(tmp_path), 2, 4, **options) as job:
        found = job.leader.forward(prompt)
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(cosine) > 0.9995  # a near-tie of the router, decided otherwise, moves a token by more


def test_a_gpu_without_the_library_says_so(tmp_path, monkeypatch):
    make_checkpoint(tmp_path, seed=1, dtype="BF16", config_overrides=TINY)
    monkeypatch.setenv("LONGCAT_NCCL", str(tmp_path / "nothing.so"))
    with pytest.raises(_core.Error, match=r"\[nccl\] ranks on GPUs need libnccl.so.2"):
        ThreadJob(str(tmp_path), 2, make=testing.open_engine, device=EMULATED)


@pytest.mark.parametrize("device, shared", [(EMULATED, False), ("cpu", True)])
def test_each_gpu_has_its_own_cache_memory(tmp_path, device, shared):
    """What the ranks of a machine share is its memory, not that of their GPUs."""
    make_checkpoint(tmp_path, seed=1, dtype="BF16", config_overrides=TINY)
    sizes = []
    for ranks_per_machine in (2, 4000):
        options = {"kv_cache_memory": 0, "max_num_seqs": 64, "max_num_batched_tokens": 512}
        with device_job(str(tmp_path), 2, 1, device, ranks_per_machine=ranks_per_machine, **options) as job:
            sizes.append(job.leader.info()["kv_cache_bytes"])
    assert (sizes[0] > sizes[1]) == shared


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("after_ms", [0.0, 7.0, 13.0, 21.0])
@pytest.mark.parametrize("way", ["peers", "nccl"])
def test_an_abort_from_another_thread(way_of_sums, after_ms, recorded, way):
    """When a communicator is aborted, only a call that waits for others may be under way, and no call comes later.

    A rank that only hears of the abort does not wait for the others to destroy theirs.
    """
    way_of_sums(way)

    def work(ranks):
        return testing.nccl_abort(ranks, after_ms + ranks.rank if ranks.rank < 2 else -1.0, recorded)

    for first, second, misuses in all_well(on_ranks(3, work)):
        assert (first, second, misuses) == ("enough", "enough", 0)


@pytest.fixture
def fail_nccl():
    """Makes the stand-in fail on one rank, for which the others wait."""
    yield testing.fail_fake_nccl
    testing.fail_fake_nccl(-1)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("doing", ["forward", "generate"])
def test_a_failure_on_one_rank_ends_all(tmp_path, fail_nccl, way_of_sums, doing, failing):
    """In the middle of a step, or of a forward pass: all ranks hear why, and no rank waits for ever."""
    way_of_sums("nccl")
    make_checkpoint(tmp_path, seed=1, dtype="BF16", config_overrides=TINY)
    job = device_job(str(tmp_path), 2, 1, EMULATED, max_num_batched_tokens=32)
    job.leader.start()
    fail_nccl(failing)
    reason = rf"\[nccl\] rank {failing}: ncclAllGather: the stand-in for NCCL failed"

    def work(ranks):
        engine = job.engines[ranks.rank]
        if ranks.rank > 0:
            return engine.join()
        if doing == "forward":
            return engine.forward(random_token_ids(3, 20))
        queue, arrived = _core.OutputQueue(), []
        engine.add_request(random_token_ids(3, 20), sampling(5), 1, queue)
        while queue.wait(arrived) and arrived[-1].finish_reason is None:
            pass
        raise _core.Error(arrived[-1].error)

    for result in on_ranks(2, work):
        with pytest.raises(_core.Error, match=reason):
            raise result
    for engine in job.engines:
        assert re.search(reason, until_failed(engine))
    assert on_ranks(2, lambda ranks: job.engines[ranks.rank].close()) == [None, None]


def until_failed(engine) -> str:
    deadline = time.monotonic() + 5
    while not engine.failure():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return engine.failure()

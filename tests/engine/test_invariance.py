"""A request's bits do not depend on what else happens in the engine.

A request runs alone, undisturbed. Its logits, N-gram ids, latents and tokens are compared with those of other runs.
These are in batches, in chunks, with prefix hits, preempted, forked, among aborts, padded.
"""

import numpy as np
import pytest
from longcat.checkpoint.convert import PRESETS, convert_checkpoint

from reference import ops as reference
from support.checkpoints import SPARSE_VARIANTS, VARIANTS, make_checkpoint, random_token_ids, read_config
from support.devices import CPU_PADDED
from support.engines import Outcome, Steps, assert_same, make_engine, sampling

# Prompts that end inside a block, at its edge, one behind it, and after several pieces of attention.
PROMPT_LENGTHS = [1, 20, 63, 64, 65, 128, 200]
NEW_TOKENS = 24
CONFIGS = [
    ("lite", "f32", "auto"),
    ("lite", "bf16", "fp8"),
    ("odd", "f32", "bf16"),
    ("flash_chat", "bf16", "auto"),
    ("lite int4", "f32", "bf16"),  # of `longcat convert`
    ("odd int8", "bf16", "auto"),
    ("lite", "f32", "int8"),
    ("odd int4", "bf16", "int8"),
    ("sparse", "f32", "auto"),
    ("sparse_wide", "bf16", "int8"),
    ("sparse_odd", "bf16", "fp8"),
    ("sparse_wide", "bf16", "auto", "int8"),
    ("sparse_odd", "f32", "int8", "int8"),
]


class Case:
    """A checkpoint, requests, and what each computes alone and undisturbed."""

    def __init__(self, folder: str, variant: str, dtype: str, kv_cache_dtype: str, index_cache_dtype: str = "auto"):
        variant, _, quant = variant.partition(" ")
        make_checkpoint(folder, seed=1, mtp=True, **(VARIANTS | SPARSE_VARIANTS)[variant])
        if quant:
            original, folder = folder, f"{folder}/{quant}"
            convert_checkpoint(original, folder, PRESETS[quant])
        self.folder = folder
        self.dtypes = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "index_cache_dtype": index_cache_dtype}
        self.config = read_config(folder)
        vocab = self.config["vocab_size"]
        self.requests = [
            (random_token_ids(10 + i, length, vocab), sampling(NEW_TOKENS, seed=i, temperature=0.8 * (i % 2)))
            for i, length in enumerate(PROMPT_LENGTHS)
        ]
        self.alone = [self.run_alone(*request) for request in self.requests]

    def engine(self, **options):
        return make_engine(self.folder, **{**self.dtypes, **options})

    def run_alone(self, token_ids, params) -> Outcome:
        steps = Steps(self.engine(enable_prefix_caching=False, overlap=False, max_num_seqs=1, num_threads=1))
        [request_id] = steps.add(token_ids, params)
        return steps.run()[request_id]

    def random_request(self, rng: np.random.Generator):
        ids = random_token_ids(int(rng.integers(1 << 30)), int(rng.integers(1, 160)), self.config["vocab_size"])
        return ids, sampling(int(rng.integers(1, 40)), seed=int(rng.integers(1000)), temperature=1.0)

    def check(self, steps: Steps, ids: list[int], what: str = "") -> None:
        for i, request_id in enumerate(ids):
            assert_same(steps.outcomes[request_id], self.alone[i], f"{what} request {i} of {PROMPT_LENGTHS[i]} tokens")


@pytest.fixture(scope="module", params=CONFIGS, ids="-".join)
def case(request, tmp_path_factory):
    return Case(str(tmp_path_factory.mktemp("model")), *request.param)


def add_all(case: Case, steps: Steps) -> list[int]:
    return [request_id for request in case.requests for request_id in steps.add(*request)]


def test_ngram_ids_equal_the_reference(case):
    if "emb_neighbor_num" not in case.config:
        assert not any(alone.record["ngram_ids"] for alone in case.alone)
        return
    for (token_ids, _), alone in zip(case.requests, case.alone, strict=True):
        expected = reference.ngram_ids([*token_ids, *alone.token_ids], case.config)
        assert len(alone.record["ngram_ids"]) == alone.record["num_tokens"]
        for position, ids in alone.record["ngram_ids"].items():
            assert ids == expected[position].tolist()


@pytest.mark.parametrize("size", [2, 7, 64, 256])
def test_in_a_batch(case, size):
    """Among others that come and go, with the overlap of steps and on two threads."""
    steps = Steps(case.engine(max_num_seqs=size, max_num_batched_tokens=max(size, 300)))
    rng = np.random.default_rng(size)
    ids = []
    for i in range(max(size, len(case.requests))):
        if i < len(case.requests):
            ids += steps.add(*case.requests[i])
        if i >= len(case.requests) or size < len(case.requests):
            steps.add(*case.random_request(rng))
    steps.run()
    case.check(steps, ids)


@pytest.mark.parametrize("budget", [1, 3, 64, 65, 127])
def test_any_chunk_size(case, budget):
    steps = Steps(case.engine(max_num_seqs=min(budget, 4), max_num_batched_tokens=budget))
    ids = add_all(case, steps)
    steps.run()
    case.check(steps, ids)


def test_prefix_hits(case):
    """A prompt that was computed before, whole or in part, and one that shares its beginning only."""
    steps = Steps(case.engine())
    first = add_all(case, steps)
    steps.run()
    case.check(steps, first, "miss")
    again = add_all(case, steps)
    steps.run()
    case.check(steps, again, "hit")
    for request_id, length in zip(again, PROMPT_LENGTHS, strict=True):
        full_blocks = length // 64 * 64
        assert steps.outcomes[request_id].stats.num_cached_tokens == min(full_blocks, length - 1)
    longer = [*case.requests[-1][0][:128], 7, 8, 9]
    [request_id] = steps.add(longer, sampling(4))
    steps.run()
    assert steps.outcomes[request_id].stats.num_cached_tokens == 128
    assert_same(steps.outcomes[request_id], case.run_alone(longer, sampling(4)), "shared beginning")
    steps.engine.reset_prefix_cache()
    cold = add_all(case, steps)
    steps.run()
    case.check(steps, cold, "after reset")
    assert not any(steps.outcomes[request_id].stats.num_cached_tokens for request_id in cold)


@pytest.mark.parametrize("may_swap", [True, False], ids=["swap", "recompute"])
def test_preempted_ten_times(case, may_swap):
    steps = Steps(case.engine())
    ids = add_all(case, steps)
    preempted = dict.fromkeys(ids, 0)
    rng = np.random.default_rng(3)
    while steps.engine.has_work():
        steps.step()
        for request_id in ids:
            if preempted[request_id] < 10 and rng.random() < 0.7:
                preempted[request_id] += steps.engine.preempt(request_id, may_swap)
    case.check(steps, ids)
    for request_id in ids:
        assert steps.outcomes[request_id].stats.num_preemptions == preempted[request_id] >= 10


@pytest.mark.parametrize("swap_blocks", [0, 2, 100])
def test_too_few_blocks_for_all(case, swap_blocks):
    """Requests take blocks from each other all the time; the completions do not change."""
    block_bytes = block_size(case)
    steps = Steps(case.engine(kv_cache_memory=9 * block_bytes, swap_memory=swap_blocks * block_bytes, max_num_seqs=7))
    ids = add_all(case, steps)
    ids += add_all(case, steps)
    steps.run()
    case.check(steps, ids[: len(case.requests)])
    case.check(steps, ids[len(case.requests) :])
    assert sum(outcome.stats.num_preemptions for outcome in steps.outcomes.values()) > 0


def block_size(case) -> int:
    """Bytes of a block of the cache."""
    c = case.config
    latent, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
    dtype = case.dtypes["kv_cache_dtype"] if case.dtypes["kv_cache_dtype"] != "auto" else case.dtypes["dtype"]
    groups = -(-latent // 128)
    fp8_row = -(-(-(-latent // 4) * 4 + 4 * groups + 2 * rope) // 4) * 4
    int8_row = -(-(4 * (groups + -(-rope // 128)) + -(-latent // 2) * 2 + 2 * rope) // 4) * 4
    row = {"f32": 4 * (latent + rope), "bf16": 2 * (latent + rope), "fp8": fp8_row, "int8": int8_row}[dtype]
    keys = 0
    if c["attention_method"] == "LSA":
        dim, is_int8 = c["index_head_dim"], case.dtypes["index_cache_dtype"] == "int8"
        key = -(-(4 + dim) // 4) * 4 if is_int8 else dim * (4 if dtype == "f32" else 2)
        keys = (2 * c["num_layers"] // c["cli_factor"] + 1) * key
    return 64 * ((2 * c["num_layers"] + 1) * row + keys + 4)


@pytest.mark.parametrize("max_num_seqs", [2, 8])
def test_forks(case, max_num_seqs):
    """n sequences of a prompt share its blocks; each is what it is alone. Those without room come later."""
    for i, (token_ids, _) in enumerate(case.requests):
        params = sampling(NEW_TOKENS, seed=i, temperature=0.8)
        steps = Steps(case.engine(max_num_seqs=max_num_seqs))
        ids = steps.add(token_ids, params, n=4)
        steps.run()
        for sample_idx, request_id in enumerate(ids):
            params.sample_idx = sample_idx
            assert_same(
                steps.outcomes[request_id], case.run_alone(token_ids, params), f"prompt {i} sample {sample_idx}"
            )
        if max_num_seqs == 8:  # all forked: the prompt was computed once
            times = [steps.outcomes[request_id].record["times_computed"].get(0, 0) for request_id in ids]
            assert times == [1, 0, 0, 0]


@pytest.mark.parametrize("method", ["ngram", "mtp"])
@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("num_blocks", [9, 100])
def test_with_draft_tokens(case, method, most, num_blocks):
    """Accepted or rejected, a draft token changes no token and no bit, also where requests preempt each other."""
    memory = num_blocks * block_size(case)
    steps = Steps(case.engine(speculation=(method, most, 3, 1, False, 0), kv_cache_memory=memory, max_num_seqs=7))
    ids = add_all(case, steps)
    repeating = [5, 6, 7, 8] * 6, sampling(NEW_TOKENS, allowed_token_ids=[5, 6, 7])
    ids += steps.add(*repeating)
    steps.run()
    for outcome in steps.outcomes.values():
        without_drafts(outcome)
    case.check(steps, ids[: len(case.requests)])
    assert_same(steps.outcomes[ids[-1]], case.run_alone(*repeating), "repeating")
    num_drafted, num_accepted = steps.engine.draft_counts()
    assert num_drafted > num_accepted > 0


def test_among_aborts(case):
    steps = Steps(case.engine(max_num_seqs=16))
    rng = np.random.default_rng(5)
    ids = add_all(case, steps)
    others = [steps.add(*case.random_request(rng))[0] for _ in range(40)]
    while steps.engine.has_work():
        steps.step()
        if others and rng.random() < 0.5:
            request_id = others.pop(rng.integers(len(others)))
            if steps.engine.abort(request_id):
                del steps.outcomes[request_id]  # nothing may come any more
    case.check(steps, ids)


def test_padded_decodes(case):
    steps = Steps(case.engine(device=CPU_PADDED, max_num_seqs=7))
    ids = add_all(case, steps)
    steps.run()
    case.check(steps, ids)
    assert steps.engine.num_recordings() <= 4  # 1, 2, 4, 7


def without_drafts(outcome: Outcome) -> None:
    """Drops what was computed for draft tokens behind the end."""
    for name in ("logits", "ngram_ids"):
        record = outcome.record[name]
        outcome.record[name] = {p: v for p, v in record.items() if p < outcome.record["num_tokens"]}


@pytest.mark.parametrize("method", ["ngram", "mtp"])
def test_padded_draft_tokens(case, method):
    """Steps with draft tokens are recorded, too, by their number of rows."""
    steps = Steps(case.engine(speculation=(method, 3, 3, 1, False, 0), device=CPU_PADDED, max_num_seqs=7))
    ids = add_all(case, steps)
    steps.add([5, 6, 7, 8] * 6, sampling(60, allowed_token_ids=[5, 6, 7]), 2)
    steps.run()
    for outcome in steps.outcomes.values():
        without_drafts(outcome)
    case.check(steps, ids)
    assert steps.engine.draft_counts()[1] > 0
    assert 3 <= steps.engine.num_recordings() <= 6  # of 1, 2, 4, 8, 16, 19


def test_recycled_pages_full_of_nan(case):
    """Free blocks hold NaN at every step: a sequence reads only what it has written."""
    block_bytes = block_size(case)
    steps = Steps(case.engine(kv_cache_memory=14 * block_bytes, max_num_seqs=5, enable_prefix_caching=False))
    rng = np.random.default_rng(6)
    ids = add_all(case, steps)
    for _ in range(10):
        steps.add(*case.random_request(rng))
    poisoned = 0
    while steps.engine.has_work():
        poisoned += steps.engine.poison_free_blocks()
        steps.step()
    case.check(steps, ids)
    assert poisoned > 100


def test_draft_tokens_by_mtp_read_nothing_stale(case):
    """They are the same when all that they must not read is NaN."""
    found = []
    for poison in (False, True):
        steps = Steps(case.engine(speculation=("mtp", 3, 1, 1, False, 0), max_num_seqs=5))
        ids = add_all(case, steps)
        steps.add(random_token_ids(3, 50), sampling(60, allowed_token_ids=[5, 6, 7]), 3)
        while steps.engine.has_work():
            if poison:
                steps.engine.poison_free_blocks()
            steps.step()
        found.append((steps.engine.draft_counts(), [steps.outcomes[request_id].token_ids for request_id in ids]))
    assert found[0] == found[1] and found[0][0][1] > 0


def test_a_broken_step_ends_its_requests_and_no_others(case):
    steps = Steps(case.engine(max_num_seqs=3))
    ids = add_all(case, steps)
    for _ in range(4):
        steps.step()
    steps.engine.break_next_step()
    steps.run()
    broken = [i for i, request_id in enumerate(ids) if steps.outcomes[request_id].finish_reason == "error"]
    assert 0 < len(broken) < len(ids)
    for i, request_id in enumerate(ids):
        if i in broken:
            assert "on purpose" in steps.outcomes[request_id].error
        else:
            assert_same(steps.outcomes[request_id], case.alone[i], f"request {i}")

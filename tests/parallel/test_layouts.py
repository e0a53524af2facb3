"""One model on several ranks computes what it computes on one."""

import json
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.random_weights import preset_config
from longcat.planning.plan import plan

from reference import ops as reference
from support.checkpoints import SPARSE_VARIANTS, make_checkpoint, random_token_ids, read_config
from support.engines import Steps, sampling
from support.layouts import MAX_ERROR, SMALL, TINY, generate
from support.ranks import ThreadJob

LAYOUTS = [(2, 1), (4, 1), (1, 2), (1, 4), (2, 4), (4, 2), (4, 4)]
IDS = [f"tp{tp}-ep{ep}" for tp, ep in LAYOUTS]
NEW_TOKENS = 200

# Widths that the blocks of packed and fp8 formats divide four ways, and two ways.
BLOCKS = TINY | {"hidden_size": 192, "v_head_dim": 32, "qk_nope_head_dim": 24, "ffn_hidden_size": 256,
                 "expert_ffn_hidden_size": 128}  # fmt: skip
FP8_BLOCKS = TINY | {"hidden_size": 192, "v_head_dim": 64, "qk_nope_head_dim": 56, "ffn_hidden_size": 256,
                     "expert_ffn_hidden_size": 256}  # fmt: skip


class Case:
    """A checkpoint, a prompt, and what one rank makes of it."""

    def __init__(self, folder: str, **options):
        self.folder, self.options = folder, {"dtype": "f32", **options}
        self.prompt = random_token_ids(5, 70, read_config(folder)["vocab_size"])
        with self.job(1, 1) as job:
            self.token_ids = generate(job, self.prompt, NEW_TOKENS)
            self.logits = job.leader.forward(self.prompt + self.token_ids)

    def job(self, tp: int, ep: int, **options) -> ThreadJob:
        return ThreadJob(self.folder, tp, ep, **{**self.options, **options})


@pytest.fixture(scope="module", params=["tiny", "small", "longcat-tiny", "flash_chat", "sparse"])
def case(request, tiny, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp(request.param))
    if request.param == "longcat-tiny":
        return Case(tiny)
    if request.param == "small":
        make_checkpoint(folder, seed=1, dtype="BF16", config_overrides=SMALL)
    else:
        shape = SPARSE_VARIANTS["sparse"]["config_overrides"] if request.param == "sparse" else {}
        make_checkpoint(folder, seed=1, ngram=request.param != "flash_chat", config_overrides=shape | TINY)
    return Case(folder)


@pytest.mark.parametrize("tp, ep", LAYOUTS, ids=IDS)
def test_greedy_tokens_and_logits(case, tp, ep):
    with case.job(tp, ep) as job:
        assert generate(job, case.prompt, NEW_TOKENS) == case.token_ids
        logits = job.leader.forward(case.prompt + case.token_ids)
    assert np.abs(logits - case.logits).max() <= MAX_ERROR


@pytest.mark.parametrize("stored", ["F32", "F16"])
def test_eight_ranks(tmp_path, stored):
    """Each with one head of eight; more ranks than N-gram tables, of which f16 ones are converted as far as they are
    here."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "n_routed_experts": 16, "emb_split_num": 2}
    make_checkpoint(tmp_path, seed=2, dtype=stored, config_overrides=TINY | heads)
    case = Case(str(tmp_path))
    for tp, ep in [(8, 1), (8, 8), (2, 8)]:
        with case.job(tp, ep) as job:
            assert generate(job, case.prompt, 50) == case.token_ids[:50]
            logits = job.leader.forward(case.prompt)
        assert np.abs(logits - case.logits[: len(case.prompt)]).max() <= MAX_ERROR


def test_three_ranks(tmp_path):
    """Shares that are no power of two, of tables that a range of rows begins and ends within."""
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 6, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 24,
             "n_routed_experts": 6, "zero_expert_num": 3, "vocab_size": 102, "emb_split_num": 1,
             "emb_neighbor_num": 3}  # fmt: skip
    make_checkpoint(tmp_path, seed=6, config_overrides=sizes)
    case = Case(str(tmp_path))
    for tp, ep in [(3, 1), (1, 3), (3, 3), (2, 6)]:
        with case.job(tp, ep) as job:
            assert generate(job, case.prompt, 50) == case.token_ids[:50]
            logits = job.leader.forward(case.prompt)
        assert np.abs(logits - case.logits[: len(case.prompt)]).max() <= MAX_ERROR


@pytest.mark.parametrize("world", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("name", ["tiny", "lite"])
def test_rows_of_the_tables_are_shared_out_evenly(name, world):
    """12 / world tables each, one after another; where one is cut, by its rows."""
    config = preset_config(name, {"n_routed_experts": 64 * 3, "vocab_size": 131072})
    sizes = [config["vocab_size"] * config["ngram_vocab_size_ratio"] + 2 * t + 1 for t in range(12)]
    end, totals = (0, 0), []
    for rank in range(world):
        tables = _core.shard(json.dumps(config), 1, world, rank)["tables"]
        assert len(tables) <= -(-12 // world) + (12 % world != 0)
        for table, (low, high) in tables.items():
            assert (table, low) == end  # nothing twice, nothing left out
            end = (table, high) if high < sizes[table] else (table + 1, 0)
        totals.append(sum(high - low for low, high in tables.values()))
    assert end == (12, 0)
    assert max(totals) - min(totals) <= 24 * (12 / world + 1)  # tables grow by 2 rows each


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_packed_formats_shard(tmp_path, quant):
    """Ranks have the integers and scales of the whole. Inputs are rounded to 8 bits, so that the last bit of a sum may
    move one of them by a step: the ranks are no further from one than the format is from bf16."""
    make_checkpoint(tmp_path / "bf16", seed=3, dtype="BF16", config_overrides=BLOCKS)
    convert_checkpoint(str(tmp_path / "bf16"), str(tmp_path / quant), PRESETS[quant])
    case = Case(str(tmp_path / quant))
    expected = case.logits[: len(case.prompt)]
    with ThreadJob(str(tmp_path / "bf16"), 1, dtype="f32") as job:
        own_error = np.abs(job.leader.forward(case.prompt) - expected).mean()
    for tp, ep in LAYOUTS:
        with case.job(tp, ep) as job:
            logits = job.leader.forward(case.prompt)
        assert np.abs(logits - expected).mean() < own_error, (tp, ep)
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.95, (tp, ep)


def test_fp8_blocks_shard(tmp_path):
    make_checkpoint(tmp_path, seed=4, dtype="FP8", config_overrides=FP8_BLOCKS)
    case = Case(str(tmp_path))
    for tp, ep in [(2, 1), (1, 4), (2, 2), (2, 4)]:
        with case.job(tp, ep) as job:
            assert np.abs(job.leader.forward(case.prompt) - case.logits[: len(case.prompt)]).max() <= MAX_ERROR


@pytest.mark.parametrize(
    "quant, overrides, tp, ep, message",
    [
        ("int8", TINY, 4, 4, "found parts of 8 of its 32 columns; expected whole blocks of 32"),
        ("int4", BLOCKS | {"v_head_dim": 16}, 4, 4, "found parts of 16 of its 64 columns"),
        (
            "bf16",
            BLOCKS | {"expert_ffn_hidden_size": 20},
            4,
            1,
            "found parts of 5 of its 20 rows; expected whole blocks of 8",
        ),
        ("FP8", FP8_BLOCKS, 4, 4, r"blocks of 128 \(fp8_block\). Numbers of parts that fit: 1, 2"),
    ],
)
def test_blocks_that_would_be_cut_are_refused(tmp_path, quant, overrides, tp, ep, message):
    dtype = "FP8" if quant == "FP8" else "BF16"
    make_checkpoint(tmp_path / "plain", seed=3, dtype=dtype, config_overrides=overrides)
    folder = tmp_path / "plain"
    if quant != "FP8":
        folder = tmp_path / quant
        convert_checkpoint(str(tmp_path / "plain"), str(folder), PRESETS[quant])
    with pytest.raises(_core.Error, match=message):
        ThreadJob(str(folder), tp, ep)


@pytest.mark.parametrize(
    "tp, ep, message",
    [
        (3, 1, "tp=3 does not divide num_attention_heads=4: use 1, 2 or 4"),
        (2, 3, "tp=2 and ep=3: the larger must be a multiple of the other"),
        (1, 16, "ep=16 does not divide n_routed_experts=8: use 1, 2, 4 or 8"),
        (8, 8, "tp=8 does not divide num_attention_heads=4: use 1, 2 or 4"),
        (0, 1, "tensor_parallel_size=0; expected at least 1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(tmp_path, tp, ep, message):
    make_checkpoint(tmp_path, seed=1, config_overrides=TINY)
    with pytest.raises(ValueError, match=message):
        ThreadJob(str(tmp_path), tp, ep)


def test_each_rank_loads_its_share(tmp_path):
    """Bytes of all ranks: what is split once, what is not as often as there are ranks."""
    make_checkpoint(tmp_path, seed=1, config_overrides=TINY)

    def sizes(tp, ep):
        with ThreadJob(str(tmp_path), tp, ep) as job:
            return [engine.info()["weight_bytes"] for engine in job.engines]

    [whole] = sizes(1, 1)
    config = json.loads((tmp_path / "config.json").read_text())
    hidden, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_layers"]
    replicated = layers * 2 * (
        hidden * config["q_lora_rank"] + hidden * (config["kv_lora_rank"] + config["qk_rope_head_dim"])
        + 2 * hidden + config["q_lora_rank"] + config["kv_lora_rank"]
    ) + layers * (config["n_routed_experts"] + config["zero_expert_num"]) * (hidden + 1) + hidden  # fmt: skip
    replicated *= 4  # f32

    def projections(tp, ep):  # with every rank that has rows of the table
        counts = [len(_core.shard(json.dumps(config), tp, ep, rank)["tables"]) for rank in range(max(tp, ep))]
        return (sum(counts) - 12) * hidden * hidden // 12 * 4

    for tp, ep in [(2, 1), (4, 1), (4, 4), (4, 2)]:
        assert sum(sizes(tp, ep)) == whole + (max(tp, ep) - 1) * replicated + projections(tp, ep)
    # Two groups of two ranks hold the same heads and first FFN; the second FFN is with the first group alone.
    q_lora, kv_lora = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, v = (config[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    per_head = q_lora * (nope + rope) + kv_lora * (nope + v) + hidden * v
    twice = 4 * layers * (2 * heads * per_head + 3 * hidden * config["ffn_hidden_size"])
    assert sum(sizes(2, 4)) == whole + 3 * replicated + twice + projections(2, 4)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("stored", ["F32", "BF16", "F16", "FP8", "int8", "int4", "bf16"])
def test_plan_knows_what_each_rank_holds(tmp_path, stored, dtype):
    """The bytes that `longcat plan` computes from headers are those of the weights that are loaded, on every rank."""
    packed = stored in PRESETS
    overrides = FP8_BLOCKS if stored == "FP8" else BLOCKS
    made = tmp_path / "made"
    make_checkpoint(made, seed=3, dtype="BF16" if packed else stored, config_overrides=overrides)
    folder = str(made)
    if packed:
        folder = str(tmp_path / "packed")
        convert_checkpoint(str(made), folder, PRESETS[stored])
    for tp, ep in [(1, 1), (2, 1), (2, 4), (1, 2), *([] if stored == "FP8" else [(4, 1), (4, 2), (1, 8)])]:
        planned = plan(folder, dtype=dtype, bandwidth=1e9, tensor_parallel_size=tp, expert_parallel_size=ep)
        with ThreadJob(folder, tp, ep, dtype=dtype) as job:
            held = [engine.info() for engine in job.engines]
        assert planned.rank_weights == [info["weight_bytes"] for info in held], (tp, ep)
        assert planned.rank_tables == [info["table_bytes"] for info in held], (tp, ep)


@pytest.mark.parametrize("stored", ["F32", "BF16", "F16"])
def test_plan_knows_what_draft_tokens_take(tmp_path, stored):
    """The MTP layer, on every rank."""
    make_checkpoint(tmp_path, seed=3, dtype=stored, config_overrides=BLOCKS, mtp=True)
    speculative = {"method": "mtp", "num_speculative_tokens": 2}
    for tp, ep in [(1, 1), (2, 4)]:
        planned = plan(
            tmp_path, bandwidth=1e9, tensor_parallel_size=tp, expert_parallel_size=ep, speculative=speculative
        )
        with ThreadJob(str(tmp_path), tp, ep, speculation=("mtp", 2, 1, 1, False, 0)) as job:
            held = [engine.info()["weight_bytes"] for engine in job.engines]
        assert planned.rank_weights == held, (tp, ep)


@pytest.mark.parametrize("tp, ep", [(2, 1), (1, 4), (2, 4), (1, 8)])
def test_ngram_ids_are_exact_on_every_rank(tmp_path, tp, ep):
    make_checkpoint(tmp_path, seed=1, config_overrides=TINY)
    prompt = random_token_ids(7, 100)
    with ThreadJob(str(tmp_path), tp, ep, make=testing.Engine, max_num_batched_tokens=33) as job:
        steps = Steps(job.leader)
        [request_id] = steps.add(prompt, sampling(20))
        outcome = steps.run()[request_id]
        job.close()
        expected = reference.ngram_ids([*prompt, *outcome.token_ids], read_config(tmp_path))
        records = [outcome.record, *(engine.record(-1) for engine in job.engines[1:])]
        for record in records:
            assert len(record["ngram_ids"]) == 119
            assert all(ids == expected[p].tolist() for p, ids in record["ngram_ids"].items())


def test_bf16_top1(tiny):
    """In bf16, of a text the most likely next token is the same at 99.5 % of the positions."""
    text = (Path(tiny).parents[1] / "tests" / "data" / "stories.txt").read_text(encoding="utf-8")
    with longcat.Engine(tiny) as engine:
        prompt = engine.encode(text)[:1000]
    with ThreadJob(tiny, 1, 1, dtype="bf16") as job:
        expected = job.leader.forward(prompt).argmax(1)
    for tp, ep in LAYOUTS:
        with ThreadJob(tiny, tp, ep, dtype="bf16") as job:
            assert (job.leader.forward(prompt).argmax(1) == expected).mean() >= 0.995

"""`longcat plan`: the peak it predicts beside the one that is measured, and the byte budget of the real model."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import longcat
import pytest
from longcat import Engine, Error, _core
from longcat import _testing as testing
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.random_weights import LITE_CONFIG, LITE_SPARSE_CONFIG, preset_config, write_checkpoint
from longcat.cli import main
from longcat.cli.commands.plan import gpu_rows
from longcat.engine.config import EngineConfig
from longcat.planning.cost import GPUS
from longcat.planning.plan import GIB, plan

from support.checkpoints import TENSOR_CORE_SHAPES, make_checkpoint
from support.devices import EMULATED
from support.layouts import TINY
from support.ranks import all_well, on_ranks

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PACKAGE = Path(longcat.__file__).parents[1]  # the one under test: of the source tree, or installed

# Fills the latent cache with random prompts; the program's peak.
FILLS_THE_CACHE = """
import json, random, re, sys, longcat
engine = longcat.Engine(sys.argv[1], **json.loads(sys.argv[2]))
info, rng, prompts = engine.info(), random.Random(1), []
while len(prompts) * 200 < info["num_kv_blocks"] * 64:
    prompts.append([rng.randrange(info["vocab_size"]) for _ in range(200)])
engine.generate(prompt_token_ids=prompts, max_tokens=2, ignore_eos=True, temperature=1.0)
print(201 * len(prompts), 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fields_that_config_json_leaves_out_or_has_under_other_names(tmp_path):
    """The engine reads such a folder, so the plan does."""
    config = preset_config("tiny", {"zero_expert_num": 0})
    names = {"ffn_hidden_size": "intermediate_size", "expert_ffn_hidden_size": "moe_intermediate_size"}
    other = {names.get(name, name): value for name, value in config.items()}
    del other["architectures"], other["num_layers"]
    other |= {"model_type": "longcat_flash_ngram", "zero_expert_num": None}
    other |= {"num_hidden_layers": 2 * config["num_layers"]}
    rows = []
    for name, fields in (("one", config), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(fields))
        made = plan(tmp_path / name, bandwidth=1e10, kv_cache_memory="1MiB", tensor_parallel_size=2)
        rows.append([made.architecture, made.parts, made.placements(), gpu_rows(made, GPUS["h100"], 2, "host")])
    assert rows[0] == rows[1]


# Medium has 7.3 GB: LONGCAT_MEDIUM names a folder that `longcat make-checkpoint --preset medium` made.
@pytest.mark.parametrize("preset", ["tiny", "small", "medium"])
def test_the_predicted_peak_is_the_measured_one(tmp_path, preset):
    if HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text():
        pytest.skip("huge pages are always on: what is not touched of a buffer takes memory, too")
    folder = os.environ.get("LONGCAT_MEDIUM") if preset == "medium" else str(tmp_path / preset)
    if folder is None:
        pytest.skip("LONGCAT_MEDIUM names no folder")
    if preset != "medium":
        write_checkpoint(folder, preset_config(preset), seed=1)
    options = {"kv_cache_memory": "8MiB", "max_model_len": 512}
    tokens, measured = map(int, run("-c", FILLS_THE_CACHE, folder, json.dumps(options)).split())
    arguments = ["--kv-cache-memory", "8MiB", "--max-model-len", "512", "--bandwidth", "10", "--json"]
    predicted = json.loads(run("-m", "longcat", "plan", folder, *arguments, "--num-tokens", str(tokens)))["peak"]
    error = predicted / measured - 1
    print(f"{preset}: predicted {predicted / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB: {error:+.1%}")
    assert abs(error) < 0.03


@pytest.fixture(scope="module")
def drafting(tmp_path_factory):
    """A checkpoint with an MTP layer."""
    folder = tmp_path_factory.mktemp("drafting")
    make_checkpoint(folder, seed=3, config_overrides=TINY, mtp=True)
    return str(folder)


MTP = {"speculative": {"method": "mtp"}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bf16"},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "fp8", "kv_cache_memory": "300kB"},
        {"kv_cache_dtype": "int8", "max_num_seqs": 40},
        {"max_num_batched_tokens": 96, "max_num_seqs": 3, "max_model_len": 200},
        {"max_num_batched_tokens": 4096},
        {"speculative": {"method": "ngram", "num_speculative_tokens": 6}},
        MTP,
        {"speculative": {"method": "mtp", "num_speculative_tokens": 7}, "max_num_batched_tokens": 64, "dtype": "bf16"},
        {"tensor_parallel_size": 2, "expert_parallel_size": 4, "max_num_batched_tokens": 300},
        {"tensor_parallel_size": 2, **MTP},
    ],
)
def test_the_plan_is_what_the_engine_allocates(drafting, options):
    """On every rank: latent cache, activations, batches, logits, draft tokens."""
    options = {"kv_cache_memory": "1MiB", **options}
    core = EngineConfig.of(drafting, options).core_options()
    memory = _core.plan_memory(drafting, core, 1 << 30)
    cache = memory["num_blocks"] * memory["block_bytes"]
    planned = [cache + allocated for allocated, _ in memory["buffers"]]
    if len(planned) == 1:
        measured = [testing.allocated_bytes(drafting, core)]
    else:
        measured = all_well(
            on_ranks(len(planned), lambda ranks: testing.allocated_bytes(drafting, core, communicator=ranks))
        )
    assert planned == pytest.approx(measured, rel=0.01)
    made = plan(drafting, bandwidth=1e9, **options)
    assert made.kv_cache == cache
    assert made.activations in [allocated - unwritten for allocated, unwritten in memory["buffers"]]


def test_options_change_the_plan(drafting):
    """Tokens of a step and the MTP layer take memory."""
    plain, wide, mtp = (
        plan(drafting, bandwidth=1e9, **options) for options in ({}, {"max_num_batched_tokens": 2048}, MTP)
    )
    assert wide.activations > 3.5 * plain.activations and wide.max_num_batched_tokens == 2048
    assert mtp.activations > plain.activations and mtp.kv_read_per_token > plain.kv_read_per_token
    assert {part.name for part in mtp.parts} - {part.name for part in plain.parts} == {"MTP embedding", "MTP layer"}
    sizes = [math.prod(shape) for _, shape, _ in _core.expected_mtp_tensors(json.dumps(plain.config))]
    assert mtp.parameters - plain.parameters == sum(sizes)


def test_the_draft_head_is_planned(drafting, tmp_path):
    """A packed head has a copy in 4 bits for draft tokens."""
    folder = str(tmp_path / "int4")
    convert_checkpoint(drafting, folder, PRESETS["int4"])
    made, plain = (plan(folder, bandwidth=1e9, kv_cache_memory="1MiB", **options) for options in (MTP, {}))
    [head] = [part for part in made.parts if part.name == "draft head"]
    config = made.config
    assert head.held == math.prod(_core.packed_shape("int4_x8", config["vocab_size"], config["hidden_size"]))
    with Engine(folder, kv_cache_memory="1MiB", **MTP) as engine:
        assert made.rank_weights == [engine._core.info()["weight_bytes"]]
    assert "draft head" not in {part.name for part in plain.parts}
    cut = plan(folder, bandwidth=1e9, kv_cache_memory="1MiB", speculative={"method": "mtp", "draft_vocab": 100})
    [head] = [part for part in cut.parts if part.name == "draft head"]
    assert head.held == math.prod(_core.packed_shape("int4_x8", 128, config["hidden_size"]))


def test_what_an_engine_refuses_is_not_planned(drafting):
    for options, message in [
        ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, "max_num_seqs=8 is more than max_num_batched_tokens=4"),
        ({"max_model_len": 10**6}, "max_model_len=1000000 is more than the checkpoint's max_position_embeddings="),
        ({"kv_cache_memory": 1000}, "[kv cache] 1000 bytes hold 0 blocks of 64 tokens"),
    ]:
        for refuse in (plan, Engine):
            with pytest.raises((ValueError, Error), match=re.escape(message)):
                refuse(drafting, **options)


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """The real model's config, without its 137 GB."""
    folder = tmp_path_factory.mktemp("lite")
    (folder / "config.json").write_text(json.dumps(LITE_CONFIG))
    return str(folder)


@pytest.mark.parametrize(
    ("placement", "format", "gib", "free", "thousands"),
    [
        ("GPU", "bf16", 127.7, 139, (202, 208)),
        ("GPU", "fp8 experts", 96.2, 139, (1210, 1225)),
        ("GPU", "fp8", 93.6, 139, (1290, 1310)),
        ("GPU, tables in host memory", "bf16", 69.2, 78, (122, 127)),
        ("GPU, tables in host memory", "fp8 experts", 37.7, 78, (1130, 1145)),
        ("GPU, tables in host memory", "fp8", 35.1, 78, (1210, 1230)),
        ("GPU, all lookups in host memory", "fp8 experts", 37.0, 44.6, (85, 90)),
        ("GPU, all lookups in host memory", "int4 experts, int8 core", 20.66, 26.5, (27, 35)),
    ],
)
def test_the_real_models_budget(lite, placement, format, gib, free, thousands):
    made = plan(lite, bandwidth=16e9)
    [row] = [row for row in made.placements() if (row.placement, row.format) == (placement, format)]
    assert row.fast_bytes / GIB == pytest.approx(gib, abs=0.1)
    assert thousands[0] <= made.cache_tokens(row, int(free * GIB)) / 1000 <= thousands[1]


def test_the_real_models_rate(lite):
    made = plan(lite, bandwidth=16e9)
    [gpu] = [row for row in made.placements() if (row.placement, row.format) == ("GPU", "bf16")]
    assert made.tokens_per_second(1, 1024, gpu) == pytest.approx(375, abs=2)
    assert made.parameters == pytest.approx(68.5e9, rel=0.01) and not made.has_weights
    assert made.kv_bytes_per_token == 33408 + 4 and made.kv_read_per_token == pytest.approx(32256, abs=4)


def test_the_cache_of_sparse_attention(tmp_path):
    """Index keys beside the latents. A token reads all keys of its owners, and the latents of its selection."""
    (tmp_path / "config.json").write_text(json.dumps(LITE_SPARSE_CONFIG))
    made = plan(tmp_path, bandwidth=16e9, kv_cache_memory="8GiB", max_model_len=4096, kv_cache_dtype="bf16")
    assert made.kv_bytes_per_token == 35840 + 1408 + 4
    assert made.kv_read_per_token == pytest.approx(32256, abs=4) and made.index_read_per_token == 3584
    int8 = plan(tmp_path, bandwidth=16e9, kv_cache_memory="8GiB", max_model_len=4096, kv_cache_dtype="bf16",
                index_cache_dtype="int8")  # fmt: skip
    assert int8.kv_bytes_per_token == made.kv_bytes_per_token - 15 * (256 - 132)
    assert (int8.kv_read_per_token, int8.index_read_per_token) == (made.kv_read_per_token, 14 * 132)
    assert made.cache_read(2048) == 2048 * made.kv_read_per_token
    assert made.cache_read(32768) == 2048 * made.kv_read_per_token + 32768 * 3584
    indexer = next(part for part in made.parts if part.name == "indexer")
    assert (indexer.weights, indexer.copied) == (14 * 3_588_224, 14 * 4 * (16 * 3072 + 128))
    [gpu] = [row for row in made.placements() if (row.placement, row.format) == ("GPU", "bf16")]
    assert gpu.state == "untried"
    assert made.cache_tokens(gpu, gpu.fast_bytes + 2**34) == (2**34 - _core.GPU_SPARE_BYTES - made.gpu_buffers()) // (
        35840 + 1408 + 4
    )
    with pytest.raises(ValueError, match="max_position_embeddings=983040"):
        plan(tmp_path, bandwidth=16e9, max_model_len=983041)


def test_tables_by_format(lite, tiny, tmp_path):
    """As large as `longcat convert` makes them, and what fits beside the rest of the engine."""
    made = plan(lite, bandwidth=16e9, kv_cache_memory="1GiB")
    sizes = {row.format: row.num_bytes / 1e9 for row in made.tables()}
    assert sizes == pytest.approx({"bf16": 62.8, "fp8": 31.9, "int8": 31.9, "int4": 16.2}, abs=0.1)
    [tables] = [part for part in made.parts if part.name == "N-gram tables"]
    rest = made.peak - made.process - tables.touched
    for row in made.tables():
        assert 0 < row.resident < row.num_bytes
        for available in (rest + row.num_bytes, rest + row.num_bytes - 1):
            [there] = [r for r in replace(made, available=available).tables() if r.format == row.format]
            assert there.fits == (available >= rest + row.num_bytes)
    assert made.as_dict()["tables"][3]["format"] == "int4"
    for format in ("fp8", "int8", "int4"):
        convert_checkpoint(tiny, tmp_path / format, {"tables": format})
        converted = plan(tmp_path / format, bandwidth=16e9)
        [row] = [row for row in converted.tables() if row.format == format]
        [part] = [part for part in converted.parts if part.name == "N-gram tables"]
        assert part.stored == row.num_bytes


@pytest.mark.parametrize("quant", PRESETS)
def test_a_converted_checkpoint_has_the_weights_of_its_source(tiny, tmp_path, quant):
    convert_checkpoint(tiny, tmp_path / "out", PRESETS[quant])
    source, converted = plan(tiny, bandwidth=16e9), plan(tmp_path / "out", bandwidth=16e9)
    assert converted.parameters == source.parameters
    assert [part.weights for part in converted.parts] == [part.weights for part in source.parts]
    assert converted.placements() == source.placements()


def test_what_this_version_can_do_is_not_said_to_come_later(lite):
    states = {(row.placement, row.format): row.state for row in plan(lite, bandwidth=16e9).placements()}
    assert {state for (placement, _), state in states.items() if placement.startswith("CPU")} == {"today"}
    assert [key for key, state in states.items() if state == "untried"] == [
        ("GPU", "bf16"), ("GPU", "fp8 experts"), ("GPU", "fp8"),
        ("GPU, tables in host memory", "bf16"), ("GPU, tables in host memory", "fp8 experts"),
        ("GPU, tables in host memory", "fp8"),
        ("GPU, tables in host memory", "int8"), ("GPU, tables in host memory", "int4"),
    ]  # fmt: skip


@pytest.mark.device
@pytest.mark.parametrize("quant", ["int4", "int8"])
@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_packed_checkpoint_takes_the_planned_memory_of_a_gpu(tmp_path, capsys, quant, placement):
    make_checkpoint(tmp_path / "bf16", dtype="BF16", config_overrides=TENSOR_CORE_SHAPES)
    convert_checkpoint(str(tmp_path / "bf16"), str(tmp_path / "out"), PRESETS[quant])
    options = ["--bandwidth", "16", "--dtype", "bf16", "--gpus", "1", "--ngram-placement", placement, "--json"]
    assert main(["plan", str(tmp_path / "out"), *options]) == 0
    [planned] = json.loads(capsys.readouterr().out)
    assert planned["experts"] == "as stored"
    taken = testing.DeviceModel(str(tmp_path / "out"), EMULATED, ngram_placement=placement).emulated_weight_bytes()
    assert planned["weights"] == pytest.approx(taken, rel=0.01)
    if placement == "host":  # as planned from the config alone
        [row] = [row for row in plan(tmp_path / "bf16", bandwidth=16e9).placements() if row.format == quant]
        assert row.fast_bytes == pytest.approx(taken, rel=0.01)
        tables = [t for t in _core.Checkpoint(str(tmp_path / "out")).tensors() if "embedders" in t[0]]
        assert row.host_bytes == sum(end - begin for *_, begin, end in tables)


def test_a_page_for_people(lite, tiny, capsys):
    assert main(["plan", tiny, "--bandwidth", "16"]) == 0
    text = capsys.readouterr().out
    assert "peak" in text and "fits: " in text and "latent cache" in text and "tokens/s at 16.0 GB/s" in text
    assert "N-gram tables by format" in text and "all in memory\n" in text
    assert "context 1024  context 2048\n" in text and "32768" not in text  # which is all that the checkpoint takes
    assert main(["plan", tiny, "--bandwidth", "16", "--max-model-len", "64"]) == 0
    assert "context 64\n" in capsys.readouterr().out
    assert main(["plan", lite, "--kv-cache-memory", "1GiB", "--bandwidth", "16"]) == 0
    assert "config.json alone" in capsys.readouterr().out


def test_what_cannot_be_planned_is_told_in_one_line(tmp_path, tiny, capsys):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(LITE_CONFIG))
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nothing!")
    for arguments, code, message in [
        ([str(tmp_path / "nowhere")], 1, "nowhere does not exist"),
        ([str(tmp_path / "damaged")], 1, "model.safetensors"),
        ([tiny, "--max-model-len", "99999"], 2, "max_model_len=99999"),
        ([tiny, "--max-model-len", "0"], 2, "--max-model-len 0; expected an integer, 1 or more"),
        ([tiny, "--max-num-batched-tokens", "0"], 2, "--max-num-batched-tokens 0; expected"),
        ([tiny, "--num-tokens", "-3"], 2, "--num-tokens -3; expected"),
        ([tiny, "--bandwidth", "-3"], 2, "--bandwidth -3; expected a number above 0"),
        ([tiny, "--bandwidth", "0"], 2, "--bandwidth 0; expected"),
        ([tiny, "--bandwidth", "nan"], 2, "--bandwidth nan; expected"),
        ([tiny, "--kv-cache-memory", "1kB"], 1, "[kv cache] 1000 bytes hold 0 blocks"),
        ([tiny, "--max-running-requests", "0"], 2, "--max-running-requests 0; expected"),
        ([tiny, "--dtype", "int3"], 2, 'dtype="int3"'),
    ]:
        assert main(["plan", *arguments]) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error

"""`longcat convert`: what is written, and that it can be stopped and go on."""

import json
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat.checkpoint.convert import COMPONENTS, PRESETS, convert_checkpoint
from longcat.cli import main

from support.checkpoints import VARIANTS, make_checkpoint, read_safetensors, write_safetensors

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "examples" / "longcat-tiny")
IDS = [5, 9, 2, 33, 7, 60, 12, 4, 21, 90] * 7


@pytest.fixture(params=["lite", "odd", "flash_chat"])
def source(request, tmp_path):
    make_checkpoint(str(tmp_path / "source"), seed=3, **VARIANTS[request.param])
    return tmp_path / "source"


@pytest.fixture
def plain(tmp_path):
    make_checkpoint(str(tmp_path / "source"), seed=3, **VARIANTS["lite"])
    return tmp_path / "source"


def tensors(folder):
    return {name: (dtype, shape) for name, dtype, shape, *_ in _core.Checkpoint(str(folder)).tensors()}


def logits(folder, **options):
    with longcat.Engine(folder, **options) as engine:
        return engine.forward(IDS)


@pytest.mark.parametrize("quant,close", [("bf16", 0.008), ("int8", 0.03), ("int4", 0.25)])
def test_logits_stay_close(source, tmp_path, quant, close):
    convert_checkpoint(source, tmp_path / "out", PRESETS[quant])
    expected, found = logits(source), logits(tmp_path / "out")
    difference = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0 < np.median(difference) < close  # the source is f32: bf16 rounds it, too


def test_which_tensors_are_packed(plain, tmp_path):
    convert_checkpoint(plain, tmp_path / "out", PRESETS["int4"])
    found = tensors(tmp_path / "out")
    assert {name.rpartition(".")[2] for name in found} >= {"int4_x8", "int8_row", "int4_row", "weight"}
    for name in tensors(plain):
        if any(part in name for part in ("norm", "router", "kv_b_proj", "post_projs")):
            assert name in found  # as it was
        else:
            assert name not in found, name
    assert found["lm_head.weight.int8_x8"][0] == "U8"
    for component in COMPONENTS:
        convert_checkpoint(plain, tmp_path / component, {component: "int8"})
        packed = [name for name in tensors(tmp_path / component) if ".int8_" in name]
        assert packed and all(_component(name) == component for name in packed)


def _component(name):
    if "experts" in name:
        return "experts"
    return {"lm_head": "head", "model.embed_tokens": "embedding"}.get(
        name.partition(".weight")[0], "tables" if "embedders" in name else "core"
    )


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_experts_of_several_formats(plain, tmp_path, dtype):
    """Inputs are prepared for each format that an expert has."""
    for quant in ("bf16", "int8"):
        convert_checkpoint(plain, tmp_path / quant, PRESETS[quant])
    wide, mixed = (read_safetensors(tmp_path / quant / "model.safetensors") for quant in ("bf16", "int8"))
    for name in [name for name in wide if ".experts.1." in name or ".up_proj." in name and ".experts." in name]:
        del mixed[name.replace("bf16_x8", "int8_x8")]
        mixed[name] = wide[name]
    write_safetensors(tmp_path / "int8" / "model.safetensors", mixed)
    expected, found = logits(plain, dtype=dtype), logits(tmp_path / "int8", dtype=dtype)
    difference = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(difference) < 0.03


def test_all_files_but_the_weights_are_copied(plain, tmp_path):
    (plain / "generation_config.json").write_text('{"top_k": 4}')
    convert_checkpoint(plain, tmp_path / "out", PRESETS["int8"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    added = {"README.md", "provenance.json", "SHA256SUMS"}
    assert names == {"config.json", "generation_config.json", "model.safetensors"} | added
    assert (tmp_path / "out" / "config.json").read_bytes() == (plain / "config.json").read_bytes()


def test_an_interrupted_run_goes_on(plain, tmp_path):
    whole = tmp_path / "whole"
    convert_checkpoint(plain, whole, PRESETS["int4"], max_shard_bytes=60_000)
    out, calls = tmp_path / "out", []

    def stop_in_the_middle(done, total):
        calls.append(done)
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(plain, out, PRESETS["int4"], max_shard_bytes=60_000, progress=stop_in_the_middle)
    assert not out.exists()
    with pytest.raises(longcat.Error, match="belongs to an interrupted run with another source or other options"):
        convert_checkpoint(plain, out, PRESETS["int8"], max_shard_bytes=60_000)
    made = convert_checkpoint(plain, out, PRESETS["int4"], max_shard_bytes=60_000)
    assert 0 < made.resumed_files < made.files
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert not (tmp_path / "out.partial").exists()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(out))


def test_what_is_refused(plain, tmp_path):
    convert_checkpoint(plain, tmp_path / "out", PRESETS["int8"])
    with pytest.raises(longcat.Error, match="exists; expected a new or an empty folder"):
        convert_checkpoint(plain, tmp_path / "out", PRESETS["int8"])
    with pytest.raises(longcat.Error, match="is packed already: convert the original checkpoint"):
        convert_checkpoint(tmp_path / "out", tmp_path / "again", PRESETS["int4"])
    with pytest.raises(ValueError, match='component "norms"; expected core, experts, head'):
        convert_checkpoint(plain, tmp_path / "again", {"norms": "int4"})
    with pytest.raises(ValueError, match='core="int3"; expected keep, bf16, int8, int4'):
        convert_checkpoint(plain, tmp_path / "again", {"core": "int3"})
    assert not list(tmp_path.glob("again*"))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_no_scale_can_hold_is_refused(plain, tmp_path, value):
    name = "model.layers.0.mlps.1.up_proj.weight"
    [(_, _, _, _, begin, end)] = [t for t in _core.Checkpoint(str(plain)).tensors() if t[0] == name]
    np.memmap(plain / "model.safetensors", np.float32, "r+", begin, ((end - begin) // 4,))[96 + 5] = value
    with pytest.raises(longcat.Error, match=rf'source: "{name}", row 1, column 5 is {value}; expected a finite value'):
        convert_checkpoint(plain, tmp_path / "out", PRESETS["int4"])


def test_values_that_are_not_finite_are_refused_in_calibration(plain, tmp_path):
    name = "model.layers.0.self_attn.0.q_a_proj.weight"
    [(_, _, _, _, begin, end)] = [t for t in _core.Checkpoint(str(plain)).tensors() if t[0] == name]
    np.memmap(plain / "model.safetensors", np.float32, "r+", begin, ((end - begin) // 4,))[7] = np.nan
    with pytest.raises(longcat.Error, match=r'source: (what reaches )?"model\.\S+" is not finite'):
        convert_calibrated(plain, tmp_path / "out")


def test_calibration_for_nothing_is_refused(plain, tmp_path):
    with pytest.raises(ValueError, match="calibration rounds the core's int4 matrices, and core is int8: leave it out"):
        convert_checkpoint(plain, tmp_path / "out", PRESETS["int8"], calibration=CALIBRATION)
    assert not list(tmp_path.glob("out*"))


def test_a_cut_packed_tensor_is_refused(plain, tmp_path):
    convert_checkpoint(plain, tmp_path / "out", PRESETS["int8"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["ffn_hidden_size"] *= 2
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(longcat.Error, match=r'gate_proj.weight.int8_x8" is \[\d+, \d+\], expected \['):
        longcat.Engine(tmp_path / "out")


def test_command(plain, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(plain), str(out), "--quant", "int4", "--tables", "keep", "--head", "int4"]) == 0
    printed = capsys.readouterr().out
    assert "in 1 file, of " in printed and "has no tokenizer.json: int4 is rounded without a text" in printed
    found = tensors(out)
    assert "lm_head.weight.int4_x8" in found and "model.ngram_embeddings.embedders.0.weight" in found
    assert main(["verify", str(out)]) == 0
    assert main(["convert", str(plain), str(out), "--quant", "int4"]) == 1
    assert "expected a new or an empty folder" in capsys.readouterr().err


def test_fp8_checkpoints_are_converted(tmp_path):
    make_checkpoint(str(tmp_path / "fp8"), seed=3, dtype="FP8")
    convert_checkpoint(tmp_path / "fp8", tmp_path / "out", PRESETS["int8"])
    assert not any("scale_inv" in name for name in tensors(tmp_path / "out") if "kv_b_proj" not in name)
    expected, found = logits(tmp_path / "fp8"), logits(tmp_path / "out")
    assert np.median(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)) < 0.05


CALIBRATION = np.random.default_rng(5).integers(4, 90, 3000).tolist()


def convert_calibrated(source, out, **options):
    return convert_checkpoint(source, out, PRESETS["int4"], calibration=CALIBRATION, **options)


def test_calibrated_matrices_are_the_same_in_one_reading_and_in_many(plain, tmp_path, monkeypatch):
    lines = []
    convert_calibrated(plain, tmp_path / "once", log=lines.append)
    assert len(lines) == 1
    monkeypatch.setattr("longcat.checkpoint.calibration.moments._MIN_MEMORY", 1)
    monkeypatch.setattr("longcat._core.available_memory", lambda: 0)
    convert_calibrated(plain, tmp_path / "often", log=lines.append)
    assert len(lines) > 10
    once, often = (tmp_path / name / "model.safetensors" for name in ("once", "often"))
    assert once.read_bytes() == often.read_bytes()
    convert_checkpoint(plain, tmp_path / "plain", PRESETS["int4"])
    assert tensors(tmp_path / "plain") == tensors(tmp_path / "once")
    assert once.read_bytes() != (tmp_path / "plain" / "model.safetensors").read_bytes()


def test_an_interrupted_calibrated_run_goes_on_with_the_same_text(plain, tmp_path):
    def stop_in_the_middle(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    convert_calibrated(plain, tmp_path / "whole", max_shard_bytes=60_000)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert_calibrated(plain, out, max_shard_bytes=60_000, progress=stop_in_the_middle)
    with pytest.raises(longcat.Error, match="another source or other options"):
        convert_checkpoint(plain, out, PRESETS["int4"], calibration=CALIBRATION[:-1], max_shard_bytes=60_000)
    assert convert_calibrated(plain, out, max_shard_bytes=60_000).resumed_files > 0
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    assert {p.name: p.read_bytes() for p in out.iterdir()} == whole


def test_calibration_text_is_checked(plain, tmp_path, capsys):
    vocab_size = json.loads((plain / "config.json").read_text())["vocab_size"]
    for ids, match in (([1, vocab_size], f"has token {vocab_size}; expected ids from 0 to"), ([], "has no tokens")):
        with pytest.raises(ValueError, match=match):
            convert_checkpoint(plain, tmp_path / "out", PRESETS["int4"], calibration=ids)
    assert not list(tmp_path.glob("out*"))
    command = ["convert", TINY, str(tmp_path / "new"), "--quant", "int4", "--calibrate"]
    (tmp_path / "short").write_text("Once upon a time.")
    assert main([*command, str(tmp_path / "short")]) == 2
    assert "gives 5 tokens: expected at least 1024" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "missing")]) == 1
    assert "missing cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrated_tiny_stays_closer(tmp_path):
    text = str(ROOT / "tests" / "data" / "stories.txt")
    rest = [word for c in COMPONENTS if c != "core" for word in (f"--{c}", "keep")]
    for name, more in (("plain", ["--calibrate", "none"]), ("calibrated", ["--calibrate", text])):
        assert main(["convert", TINY, str(tmp_path / name), "--quant", "int4", *rest, *more]) == 0
    with longcat.Engine(TINY) as engine:
        ids = engine.encode("Mira and her brother went to the market. They wanted to buy a red hat for their mother.")
        expected = engine.forward(ids)
    far = {}
    for name in ("plain", "calibrated"):
        with longcat.Engine(tmp_path / name) as engine:
            far[name] = np.square(engine.forward(ids) - expected).mean()
    assert far["calibrated"] < 0.6 * far["plain"]


def nats_per_token(folder, texts):
    with longcat.Engine(folder, num_threads=1, enable_prefix_caching=False) as engine:
        found = []
        for text in texts:
            ids = engine.encode(text)
            rows = engine.forward(ids)[:-1].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            found.append(np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(ids) - 1), ids[1:]])
    return np.concatenate(found).mean()


@pytest.mark.slow
def test_default_formats_keep_the_perplexity(tmp_path):
    """int8 costs at most 0.1 % on a text that the calibration text does not hold, int4 without a text 1 %."""
    texts = (ROOT / "tests" / "data" / "stories.txt").read_text(encoding="utf-8").split("\n---\n")
    expected = nats_per_token(TINY, texts)
    for quant, most in (("int8", 1.001), ("int4", 1.01)):
        assert main(["convert", TINY, str(tmp_path / quant), "--quant", quant]) == 0
        assert np.exp(nats_per_token(tmp_path / quant, texts) - expected) <= most, quant

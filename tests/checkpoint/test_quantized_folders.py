"""`longcat convert FOLDER` of checkpoints that other projects quantised: values, formats, errors, messages."""

import json
import re
import shutil

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat.checkpoint.sources.importing import import_weights
from longcat.checkpoint.sources.quantized.opening import open_quantized
from longcat.checkpoint.verify import verify_checkpoint
from longcat.cli import main

from support import quantized_folders as q
from support.checkpoints import decode, make_checkpoint, read_safetensors, write_safetensors
from support.packed_reader import read_packed
from support.quantized_cases import CASES, MLX, ROUNDED, auto_round, compressed, mlx

IDS = [5, 9, 2, 33, 7, 60, 12, 4, 21, 90] * 4


def read_converted(folder):
    """name -> (format, values), by a reader that does not use the product."""
    config = (folder / "config.json").read_text()
    shapes = {name: shape for name, shape, _ in _core.expected_tensors(config) + _core.expected_mtp_tensors(config)}
    found = {}
    for name, (dtype, shape, data) in read_safetensors(folder / "model.safetensors").items():
        if dtype == "U8":
            name, _, form = name.rpartition(".")
            found[name] = form, read_packed(folder, f"{name}.{form}", *shapes[name])
        else:
            found[name] = dtype, decode(data, dtype, shape)
    return found


@pytest.mark.parametrize("case", CASES)
def test_values(tmp_path, case):
    pack, fields, expert, how = CASES[case]
    means = q.write_folder(tmp_path / "in", pack, fields, **how)
    source = open_quantized(tmp_path / "in")
    assert list(source.tensors()) and set(source.tensors()) == set(means)
    for name, values in means.items():
        rows = values.reshape(-1, values.shape[-1])
        parts = [source.rows(name, begin, min(begin + 56, len(rows))) for begin in range(0, len(rows), 56)]
        assert np.array_equal(np.concatenate(parts), rows), name  # in parts that begin inside words and blocks
    made = import_weights(source, tmp_path / "out")
    found = read_converted(tmp_path / "out")
    assert found["model.layers.0.mlp.experts.1.up_proj.weight"][0] == expert
    squares = {}
    for name, values in means.items():
        form, got = found[name]
        if form not in ("int8_x8", "int8_b32") or case not in ROUNDED:
            assert np.array_equal(got, values), name
        sums = squares.setdefault((source.tensors()[name].format, form), np.zeros(2))
        rows = values.reshape(-1, values.shape[-1])[::8].astype(np.float64)
        sums += ((got.reshape(-1, got.shape[-1])[::8] - rows) ** 2).sum(), (rows**2).sum()
    assert squares.keys() == made.added.keys()
    for kind, (error, norm) in squares.items():
        assert made.added[kind].relative == pytest.approx(np.sqrt(error / norm), rel=1e-4), kind
    assert any(added.error for added in made.added.values()) == (case in ROUNDED)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config.keys() & {"quantization", "quantization_config"}


@pytest.mark.parametrize(
    "case", ["AutoRound g128", "compressed-tensors int4", "compressed-tensors MXFP4", "bf16 stacks"]
)
def test_logits_of_exact_formats(tmp_path, case):
    pack, fields, _, how = CASES[case]
    means = q.write_folder(tmp_path / "in", pack, fields, **how)
    config = json.loads((tmp_path / "in" / "config.json").read_text()) | {"torch_dtype": "float32"}
    (tmp_path / "f32").mkdir()
    (tmp_path / "f32" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "quant" not in k}))
    write_safetensors(
        tmp_path / "f32" / "model.safetensors",
        {name: ("F32", values.shape, values.astype("<f4").tobytes()) for name, values in means.items()},
    )
    import_weights(open_quantized(tmp_path / "in"), tmp_path / "out")
    expected, found = (logits(tmp_path / name) for name in ("f32", "out"))
    cosines = (expected * found).sum(axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    # The kernels round the inputs of packed matrices to 8 bits. Where an expert is picked otherwise, one token differs.
    assert np.median(cosines) >= (0.9999 if case == "bf16 stacks" else 0.9995)


def logits(folder):
    with longcat.Engine(folder, dtype="f32", num_threads=1) as engine:
        return engine.forward(IDS)


def test_kv_b_in_two_stacks_of_heads(tmp_path):
    means = q.write_folder(tmp_path / "in", q.mlx(8, 32), mlx(8, 32), rename=q.mlx_names_by_heads, choose=q.is_wide)
    source = open_quantized(tmp_path / "in")
    name = "model.layers.0.self_attn.1.kv_b_proj.weight"
    assert np.array_equal(source.rows(name, 0, 192), means[name])
    assert np.array_equal(source.rows(name, 90, 101), means[name][90:101])


def test_bits_that_differ_by_module(tmp_path):
    wide, plain = "model.layers.0.self_attn.0.o_proj", "model.layers.0.mlps.1.down_proj"

    def pack(name):
        module = name.removesuffix(".weight")
        return None if module == plain else q.gptq(8 if module == wide or ".mlps.0." in module else 4)

    extra = {wide: {"bits": 8}, plain: {"bits": 16}, r".*\.mlps\.0\..*": {"bits": 8}}
    means = q.write_folder(tmp_path / "in", pack, auto_round(extra_config=extra), by_name=True)
    tensors = open_quantized(tmp_path / "in").tensors()
    assert tensors[wide + ".weight"].format == "GPTQ int8 g128 symmetric"
    assert tensors["model.layers.0.mlps.0.up_proj.weight"].format == "GPTQ int8 g128 symmetric"
    assert tensors[plain + ".weight"].dtype == "BF16" and len(means) == len(tensors)


def test_pruned_experts(tmp_path):
    """Tools that remove experts may leave n_routed_experts as it was."""
    q.write_folder(tmp_path / "in", q.ct_packed(), compressed("pack-quantized", 4, 128))
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps(config | {"n_routed_experts": 6}))
    made = import_weights(open_quantized(tmp_path / "in"), tmp_path / "out")
    assert made.notes == [
        "n_routed_experts is 6 in config.json, and each layer has 4 experts: the new config.json says 4"
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_routed_experts"] == 4
    assert np.isfinite(logits(tmp_path / "out")).all()


def test_pruned_experts_of_a_checkpoint_in_bf16(tmp_path):
    make_checkpoint(tmp_path / "in", seed=1, dtype="BF16")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps(config | {"n_routed_experts": 8}))
    assert open_quantized(tmp_path / "in").notes
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    assert open_quantized(tmp_path / "in") is None  # the engine reads it


def test_the_official_fp8_stays_as_it_is(tmp_path):
    make_checkpoint(tmp_path / "in", seed=1, dtype="FP8")
    assert open_quantized(tmp_path / "in") is None
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--quant", "int8"]) == 0


def test_a_missing_file_of_the_mtp_layer(tmp_path):
    make_checkpoint(tmp_path / "in", seed=1, shards=2, mtp=True)
    (tmp_path / "in" / "model-auxiliary.safetensors").unlink()
    assert np.isfinite(logits(tmp_path / "in")).all()
    report = verify_checkpoint(tmp_path / "in", headers_only=True)
    assert report.ok
    assert "model-auxiliary.safetensors is missing" in "\n".join(check.detail for check in report.checks)
    with pytest.raises(longcat.Error, match="has no MTP layer"):
        longcat.Engine(tmp_path / "in", speculative={"method": "mtp", "num_speculative_tokens": 1})
    (tmp_path / "in" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(longcat.Error, match=r"1 of 3 shards not found \(model-00001-of-00002.safetensors\)"):
        longcat.Engine(tmp_path / "in")


def test_the_commands(tmp_path, capsys):
    q.write_folder(tmp_path / "in", q.mlx(4, 32), mlx(4, 32), **MLX)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"MLX 4-bit g32 -> int8_x8: adds a relative RMS error of 0\.\d+ % \(\d+ tensors\)", said)
    command = f"`longcat convert {tmp_path / 'in'} OUT` reads AutoRound, GPTQ, compressed-tensors, MLX and FP8"
    for words in (["plan"], ["verify", "--headers"], ["doctor"]):
        assert main([*words, str(tmp_path / "in")]) != 0
        out, err = capsys.readouterr()
        assert command in out + err
    with pytest.raises(longcat.Error, match=re.escape(command)):
        longcat.Engine(tmp_path / "in")
    shutil.rmtree(tmp_path / "out")

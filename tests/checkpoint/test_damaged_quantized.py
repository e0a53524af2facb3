"""Damaged and unknown checkpoints of other projects end in one line that names the tensor or field."""

import json
import re
import shutil

import longcat
import numpy as np
import pytest
from longcat.checkpoint.sources.quantized.opening import open_quantized
from longcat.checkpoint.sources.quantized.settings import Patterns

from support import quantized_folders as q
from support.checkpoints import read_safetensors, write_safetensors
from support.quantized_cases import CASES

MODULE = "model.layers.0.mlps.0.up_proj"
BASES = {
    "gptq": "AutoRound g128",
    "zeros": "GPTQ zero points",
    "ct4": "compressed-tensors int4 zero points",
    "ct8": "compressed-tensors w8a8",
    "mxfp4": "compressed-tensors MXFP4",
    "ctfp8": "compressed-tensors FP8",
    "mlx": "MLX 4 bits",
    "fp8": "FP8 stacks",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    for name, case in BASES.items():
        pack, fields, _, how = CASES[case]
        q.write_folder(root / name, pack, fields, **how)
    return root


def read(folder):
    """Opens the folder and reads the matrix of MODULE, as an import does."""
    source = open_quantized(folder)
    name = f"{MODULE}.weight"
    found = source.tensors()[name]
    (source.grid_rows if found.grid else source.rows)(name, 0, found.shape[0])


def tensor(part, change):
    """An edit of one tensor of MODULE."""

    def edit(folder):
        path = folder / "model.safetensors"
        tensors = read_safetensors(path)
        name = part if part in tensors else f"{MODULE}.{part}"
        changed = change(*tensors.pop(name))
        write_safetensors(path, tensors | ({name: changed} if changed else {}))

    return edit


def field(name, value, inside="quantization_config"):
    """An edit of one field of the configuration; `name` may be a path."""

    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        at = config[inside]
        *path, last = name.split("/")
        for step in path:
            at = at[step]
        at[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def short(dtype, shape, data):
    return dtype, (shape[0] - 1, *shape[1:]), data[: len(data) // shape[0] * (shape[0] - 1)]


def as_bytes(dtype, shape, data):
    return "U8" if dtype != "U8" else "I8", (*shape[:-1], shape[-1] * (len(data) // int(np.prod(shape)))), data


def no_groups(dtype, shape, data):
    return dtype, (0, *shape[1:]), b""


def lost(*_):
    return None


def with_nan(dtype, shape, data):
    nan = {"F16": b"\0\x7e", "BF16": b"\xc0\x7f", "F32": b"\0\0\xc0\x7f", "U8": b"\xff", "F8_E4M3": b"\x7f"}[dtype]
    return dtype, shape, nan + data[len(nan) :]


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def override(module, value):
    return field(module, value, "quantization")


WEIGHTS = "config_groups/group_0/weights"
GROUPS = [0, -5, 33, 10**30, "128", True, None, [128]]
DAMAGES = [
    *((base, cut, r"\[safetensors\] .*model.safetensors") for base in BASES),
    # --- GPTQ and AutoRound
    ("gptq", tensor("qweight", short), rf'"{MODULE}.qweight" is I32 \[47, 128\]; expected I32 \[48, 128\]'),
    ("gptq", tensor("qweight", as_bytes), rf'"{MODULE}.qweight" is U8 \[48, 512\]; expected I32'),
    ("gptq", tensor("qweight", lost), f'"{MODULE}" has no qweight'),
    ("gptq", tensor("scales", lost), f'"{MODULE}" has no scales'),
    ("gptq", tensor("scales", no_groups), rf'"{MODULE}.scales" is F16 \[0, 128\]; expected .* \[3, 128\]'),
    ("gptq", tensor("scales", with_nan), f'"{MODULE}", row 0, group 0 has the scale nan'),
    ("gptq", tensor("qzeros", short), rf'"{MODULE}.qzeros" is I32 \[2, 16\]; expected I32 \[3, 16\]'),
    ("gptq", tensor("qzeros", lambda d, s, b: (d, s, b"\0" * len(b))), f'"{MODULE}", row 0, column .* zero point'),
    ("zeros", field("desc_act", True), "desc_act is true, and g_idx is missing"),
    *(("gptq", field("group_size", size), "config.json: quantization_config.group_size is") for size in GROUPS),
    ("gptq", field("bits", 3), "quantization_config.bits is 3; expected 4 or 8"),
    ("gptq", field("sym", "yes"), 'quantization_config.sym is "yes"; expected true or false'),
    ("gptq", field("packing_format", "auto_round:marlin"), 'packing_format is "auto_round:marlin"; expected'),
    ("gptq", field("data_type", "mx_fp"), 'quantization_config.data_type is "mx_fp"; expected "int"'),
    ("gptq", field("quant_method", "awq"), 'quant_method is "awq"; expected "auto-round" or "gptq" or'),
    ("gptq", field("extra_config", {MODULE: {"bits": 16}}), "extra_config.* says that it is not quantised"),
    ("gptq", field("extra_config", {MODULE: 7}), "extra_config.*up_proj is 7; expected an object"),
    ("gptq", field("extra_config", {"(a+)+$": {"bits": 8}}), r"pattern .*; expected at most 6 repeats and no repeated"),
    ("gptq", field("extra_config", {"[": {"bits": 8}}), "pattern .*; expected a valid one"),
    ("zeros", field("checkpoint_format", "marlin"), 'checkpoint_format is "marlin"; expected "gptq" or "gptq_v2"'),
    # --- compressed-tensors
    ("ct4", tensor("weight_packed", short), rf'"{MODULE}.weight_packed" is I32 \[127, 48\]; expected I32 \[128, 48\]'),
    ("ct4", tensor("weight_packed", as_bytes), "weight_packed.* is U8"),
    ("ct4", tensor("weight_scale", lost), f'"{MODULE}" has no weight_scale'),
    ("ct4", tensor("weight_scale", no_groups), r"weight_scale.* is BF16 \[0, 12\]; expected"),
    ("ct4", tensor("weight_scale", with_nan), f'"{MODULE}", row 0, group 0 has the scale nan'),
    ("ct4", tensor("weight_zero_point", lost), f'"{MODULE}" has no weight_zero_point'),
    ("ct4", tensor("weight_zero_point", short), r"weight_zero_point.* is I32 \[15, 12\]; expected I32 \[16, 12\]"),
    (
        "ct4",
        tensor("weight_shape", lambda d, s, b: (d, s, b[::-1])),
        r"weight_shape.* holds \[.*\]; expected \[128, 384\]",
    ),
    *(("ct4", field(f"{WEIGHTS}/group_size", size), "group_0.weights.group_size") for size in GROUPS if size),
    ("ct4", field(f"{WEIGHTS}/num_bits", 3), "group_0.weights.num_bits is 3; expected 4 or 8"),
    ("ct4", field(f"{WEIGHTS}/type", "float"), "group_0.weights.num_bits is 4; expected what pack-quantized holds"),
    ("ct4", field(f"{WEIGHTS}/strategy", "token"), 'weights.strategy is "token"; expected "group" or "channel"'),
    (
        "ct4",
        field("config_groups/group_0/format", "nvfp4-pack-quantized"),
        "group_0.format is .*; expected .pack-quant",
    ),
    ("ct4", field("config_groups", {}), "config_groups is {}; expected at least one group"),
    ("ct4", field("config_groups", []), r"config_groups is \[\]; expected an object"),
    ("ct4", field("config_groups/group_0/targets", ["re:.*experts.*"]), "no entry of .*config_groups names it"),
    ("ct4", field("ignore", [f"{MODULE}"]), f'"{MODULE}" is quantised, but .*ignore has "{MODULE}"'),
    ("ct4", field("ignore", "lm_head"), 'ignore is "lm_head"; expected a list of module names'),
    ("ct4", field("ignore", ["re:(x+x+)+y"]), "repeated group"),
    ("ct4", field("sparsity_config", {"format": "sparse-24-bitmask"}), "sparsity_config is .*; expected none"),
    ("ct8", tensor("weight", as_bytes), "weight.* is U8 .*; expected I8"),
    ("ct8", tensor("weight_scale", short), r"weight_scale.* is BF16 \[127, 1\]; expected .* \[128, 1\]"),
    ("mxfp4", tensor("weight_scale", with_nan), f'"{MODULE}", row 0, group 0 has the scale nan'),
    ("mxfp4", field(f"{WEIGHTS}/group_size", 64), "group_size is 64; expected 32"),
    ("ctfp8", tensor("weight", with_nan), f'"{MODULE}.weight", row 0, column 0 is nan'),
    ("ctfp8", tensor("weight_scale", lost), f'"{MODULE}" has no weight_scale'),
    # --- MLX
    ("mlx", tensor("weight", short), rf'"{MODULE}.weight" is I32 \[127, 48\]; expected I32 \[128, 48\]'),
    ("mlx", tensor("weight", as_bytes), "weight.* is U8"),
    ("mlx", tensor("scales", lost), f'"{MODULE}" has no scales'),
    ("mlx", tensor("biases", lost), f'"{MODULE}" has no biases'),
    ("mlx", tensor("scales", no_groups), r"scales.* is BF16 \[0, 12\]; expected"),
    ("mlx", tensor("scales", with_nan), f'"{MODULE}", row 0, group 0 has the scale nan'),
    ("mlx", tensor("biases", with_nan), f'"{MODULE}", row 0, group 0 has the scale nan'),
    *(("mlx", override("group_size", size), "config.json: quantization.group_size is") for size in GROUPS),
    ("mlx", override("bits", 7), "quantization.bits is 7; expected 2 or 3"),
    ("mlx", override("mode", "nvfp4"), 'quantization.mode is "nvfp4"; expected "affine" or "mxfp4"'),
    ("mlx", override(MODULE, False), f'"{MODULE}" has scales, but .* says that it is not quantised'),
    ("mlx", override(MODULE, {"group_size": 64, "bits": 8}), rf'"{MODULE}.weight" is I32 \[128, 48\]; expected I32'),
    (
        "mlx",
        tensor("model.layers.0.mlp.switch_mlp.up_proj.scales", short),
        r"is BF16 \[3, 128, 12\]; expected \[4, ...\]",
    ),
    # --- FP8
    ("fp8", tensor("weight", with_nan), f'"{MODULE}.weight", row 0, column 0 is nan'),
    ("fp8", tensor("weight", as_bytes), f'"{MODULE}" has scales without F8_E4M3 weights'),
    ("fp8", tensor("weight_scale_inv", lost), f'"{MODULE}" has no weight_scale_inv'),
    ("fp8", tensor("weight_scale_inv", no_groups), r"weight_scale_inv.* is F32 \[0, 3\]; expected"),
    ("fp8", tensor("weight_scale_inv", with_nan), f'"{MODULE}", row 0, group 0 has the scale nan'),
    ("fp8", field("weight_block_size", [0, 128]), r"weight_block_size is \[0, 128\]; expected two sizes"),
    ("fp8", field("weight_block_size", [True, 128]), r"weight_block_size is \[true, 128\]; expected two sizes"),
    ("fp8", field("weight_block_size", 128), "weight_block_size is 128; expected two sizes"),
    ("fp8", field("fmt", "e5m2"), 'quantization_config.fmt is "e5m2"; expected "e4m3"'),
    ("fp8", field("ignored_layers", [MODULE]), f'ignored_layers has "{MODULE}"; expected BF16'),
]


@pytest.mark.parametrize("number", range(len(DAMAGES)), ids=lambda n: f"{DAMAGES[n][0]}-{n}")
def test_one_line(folders, tmp_path, number):
    base, edit, words = DAMAGES[number]
    shutil.copytree(folders / base, tmp_path / "in")
    edit(tmp_path / "in")
    with pytest.raises(longcat.Error) as raised:
        read(tmp_path / "in")
    message = str(raised.value)
    assert re.search(words, message), message
    assert "\n" not in message and len(message) < 500


def test_layers_with_different_numbers_of_experts(tmp_path):
    pack, fields, _, _ = CASES["AutoRound g128"]
    q.write_folder(tmp_path / "in", pack, fields, overrides={**q.CONFIG, "num_layers": 2})
    path = tmp_path / "in" / "model.safetensors"
    tensors = read_safetensors(path)
    write_safetensors(path, {n: t for n, t in tensors.items() if ".layers.1.mlp.experts.3." not in n})
    with pytest.raises(longcat.Error, match="layer 1 has 3 experts, layer 0 has 4; expected the same number"):
        open_quantized(tmp_path / "in")
    write_safetensors(path, {n: t for n, t in tensors.items() if ".layers.1.mlp.experts.2." not in n})
    with pytest.raises(longcat.Error, match="layer 1 has no expert 2"):
        open_quantized(tmp_path / "in")


def test_slow_patterns_end():
    patterns = Patterns()
    with pytest.raises(longcat.Error, match="take more than"):
        patterns._left = 0.0
        patterns.search(".*a.*b", "model.layers.0", "ignore")

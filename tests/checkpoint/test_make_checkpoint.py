"""`longcat make-checkpoint`: the official layout, the same bytes for the same seed, at any scale."""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys

import longcat
import numpy as np
import pytest
from longcat.checkpoint import random_values as product
from longcat.checkpoint.convert import convert_checkpoint
from longcat.checkpoint.formats import PRESETS as QUANT_PRESETS
from longcat.checkpoint.random_values import ValuePool, random_bits
from longcat.checkpoint.random_weights import PACKED, PRESETS, preset_config, tensor_specs, write_checkpoint
from longcat.checkpoint.verify import verify_checkpoint
from longcat.cli import main

from support.checkpoints import VARIANTS, from_bf16, make_checkpoint, read_checkpoint, read_safetensors

TINY = PRESETS["tiny"]


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def generated(folder, **options):
    with longcat.Engine(folder, kv_cache_memory="1MiB", num_threads=1, **options) as engine:
        out = engine.generate(prompt_token_ids=[5, 6, 7, 8], max_tokens=8, temperature=0, ignore_eos=True)
        logits = engine.forward(list(range(4, 68)))
    return out.outputs[0].token_ids, logits


# --- what the tests themselves are made of -------------------------------------------------------

# Stored results in tests/data belong to these bytes.
DIGESTS = {
    ("lite", "F32", 1, False): "6c234929b3ea26f0",
    ("lite", "BF16", 3, True): "a080098449726835",
    ("lite", "FP8", 3, True): "2629e1114ca769e9",
    ("flash_chat", "F32", 1, False): "a90ec246fd284825",
    ("yarn_mscale", "F32", 1, False): "923aa5bee253745f",
    ("n5", "F16", 1, False): "3e20d6d49e58ca11",
    ("odd", "F32", 3, True): "198d38041f9b6f52",
    ("odd_small", "BF16", 1, False): "95c229e0b38036df",
    ("many_experts", "F32", 1, False): "b755ea6878f61426",
}


@pytest.mark.parametrize("case", DIGESTS, ids=lambda case: "-".join(map(str, case)))
def test_checkpoints_of_the_tests_keep_their_bytes(case, tmp_path):
    variant, dtype, shards, mtp = case
    make_checkpoint(tmp_path, seed=5, dtype=dtype, shards=shards, mtp=mtp, **VARIANTS[variant])
    digest = hashlib.sha256()
    for name, data in content(tmp_path).items():
        digest.update(name.encode() + data)
    assert digest.hexdigest()[:16] == DIGESTS[case]


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, parameters, num_tensors",
    [
        ("tiny", 288_594, 115),
        ("small", 224_766_912, 515),
        ("medium", 3_649_060_056, 615),
        ("lite", 68_562_465_024, 11_143),  # the published model
        ("tiny-sparse", 295_538, 123),
        ("lite-sparse", 68_612_700_160, 11_199),
    ],
)
def test_sizes_of_the_presets(preset, parameters, num_tensors):
    specs = tensor_specs(PRESETS[preset])
    assert (sum(math.prod(spec.shape) for spec in specs.values()), len(specs)) == (parameters, num_tensors)


def test_mtp_of_the_published_model():
    specs = tensor_specs(PRESETS["lite"], mtp=True)
    mtp = {name: spec for name, spec in specs.items() if name.startswith("model.mtp.")}
    assert (len(mtp), sum(math.prod(spec.shape) for spec in mtp.values())) == (17, 510_870_528)


# --- values --------------------------------------------------------------------------------------


def values_of(name, spec, dtype, seed=0):
    return np.concatenate([chunk.copy() for chunk in ValuePool(seed).chunks(name, spec, dtype)])


@pytest.mark.parametrize("start", [0, 12345, ValuePool.PERIOD - 70_001])
def test_values_are_the_documented_formula(start, monkeypatch):
    monkeypatch.setattr(product, "stream_key", lambda seed, name: start if name == "x" else seed + 1)
    rows, width = 5, 70_001  # across chunks, and across the end of the ring
    words = random_bits(3, "ring", (ValuePool.PERIOD + 3) // 4)
    ring = np.concatenate(
        [words[: (ValuePool.PERIOD - 1) // 4].view(np.int16), random_bits(3, "ring end", 1).view(np.int16)[:1]]
    )
    assert len(ring) == ValuePool.PERIOD
    spec = product.TensorSpec((rows, width), 0.5, mean=1.0, std_tail=(2, 0.25))
    index = (start + np.arange(rows * width)) % ValuePool.PERIOD
    std = np.where(np.arange(rows * width) < 3 * width, 0.5, 0.25)
    expected = ring[index] * (std * math.sqrt(12) / 2**16).astype(np.float32) + np.float32(1)
    found = values_of("x", spec, "f32", seed=3)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    truncated = values_of("x", spec, "bf16", seed=3)
    assert np.array_equal(truncated, (found.view(np.uint32) >> 16).astype(np.uint16))


def test_spread_of_the_tensors(tmp_path):
    config = preset_config("tiny", {"vocab_size": 1000, "n_routed_experts": 12})
    write_checkpoint(tmp_path / "m", config, mtp=True)
    stored = read_checkpoint(tmp_path / "m")
    for name, spec in tensor_specs(config, mtp=True).items():
        values = stored[name]
        assert np.isfinite(values).all() and values.shape == spec.shape
        if values.size >= 1000 and not spec.std_tail:
            assert values.std() == pytest.approx(spec.std, rel=0.1), name
            assert values.mean() == pytest.approx(spec.mean, abs=0.15 * spec.std), name
    kv_a = stored["model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight"]
    assert kv_a[-8:].std() > 10 * kv_a[:-8].std()
    for name in ("lm_head.weight", "model.embed_tokens.weight"):  # equal rows would be ties in the logits
        assert len(np.unique(stored[name], axis=0)) == 1000


def test_every_expert_is_chosen():
    config = PRESETS["small"]
    name = "model.layers.0.mlp.router.classifier.weight"
    spec = tensor_specs(config)[name]
    classifier = values_of(name, spec, "f32").reshape(spec.shape)
    x = np.random.default_rng(0).standard_normal((4000, config["hidden_size"])).astype(np.float32)
    chosen = np.argsort(-(x @ classifier.T), axis=1)[:, : config["moe_topk"]]
    share = np.bincount(chosen.ravel(), minlength=spec.shape[0]) / chosen.size * spec.shape[0]
    assert 0.7 < share.min() and share.max() < 1.4


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_it_loads_and_generates(dtype, tmp_path):
    made = write_checkpoint(tmp_path / "m", TINY, dtype=dtype)
    assert made.parameters == 288_594 and made.files == 1
    assert made.num_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    token_ids, logits = generated(tmp_path / "m")
    assert len(token_ids) == 8 and np.isfinite(logits).all() and 0.5 < logits.std() < 5
    assert len(set(logits.argmax(axis=1).tolist())) > 8
    report = verify_checkpoint(tmp_path / "m")
    assert report.ok and [check.name for check in report.checks if check.status == "warn"] == [
        "tokenizer", "chat template", "generation", "hashes",
    ]  # fmt: skip


def test_same_seed_same_bytes(tmp_path):
    for name, seed in [("a", 7), ("b", 7), ("c", 8)]:
        write_checkpoint(tmp_path / name, TINY, seed=seed, mtp=True)
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert a["config.json"] == c["config.json"]
    assert a["model-00001-of-00001.safetensors"] != c["model-00001-of-00001.safetensors"]
    digest = hashlib.sha256(a["model-00001-of-00001.safetensors"]).hexdigest()
    assert digest.startswith("355a0508027e214d")  # on any machine


def test_shards_hold_what_one_file_holds(tmp_path):
    write_checkpoint(tmp_path / "one", TINY)
    made = write_checkpoint(tmp_path / "many", TINY, mtp=True, max_shard_bytes=50_000)
    files = sorted(path.name for path in (tmp_path / "many").glob("model-0*.safetensors"))
    assert made.files == len(files) + 1 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    sizes = 0
    for file in [*files, "model-auxiliary.safetensors"]:
        tensors = read_safetensors(tmp_path / "many" / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == tensors.keys()
        assert len(tensors) == 1 or file not in files or sum(len(raw) for *_, raw in tensors.values()) <= 50_000
        sizes += sum(len(raw) for *_, raw in tensors.values())
    assert index["metadata"]["total_size"] == sizes
    one, many = read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "many")
    assert all(np.array_equal(one[name], many[name]) for name in one)
    assert {name for name in many if name not in one} == {name for name in many if name.startswith("model.mtp.")}
    assert generated(tmp_path / "one")[0] == generated(tmp_path / "many")[0]
    assert verify_checkpoint(tmp_path / "many").ok


def test_dtypes_in_the_files(tmp_path):
    for dtype, tag in [("bf16", "BF16"), ("f32", "F32")]:
        write_checkpoint(tmp_path / dtype, TINY, dtype=dtype)
        tensors = read_safetensors(tmp_path / dtype / "model.safetensors")
        for name, (found, _, _) in tensors.items():
            assert found == ("F32" if ".router." in name else tag), name
    bf16, f32 = (read_checkpoint(tmp_path / dtype) for dtype in ("bf16", "f32"))
    name = "lm_head.weight"
    assert np.array_equal(bf16[name], from_bf16((f32[name].view(np.uint32) >> 16).astype(np.uint16)))


def test_an_existing_folder_is_kept(tmp_path):
    out = tmp_path / "m"
    out.mkdir()
    write_checkpoint(out, TINY)  # an empty one is taken
    before = content(out)
    for target in (out, out / "config.json"):
        with pytest.raises(longcat.Error, match="exists"):
            write_checkpoint(target, TINY, seed=1)
    assert content(out) == before
    (tmp_path / "n.partial").mkdir()
    (tmp_path / "n.partial" / "config.json").touch()
    with pytest.raises(longcat.Error, match="n.partial belongs to an interrupted run"):
        write_checkpoint(tmp_path / "n", TINY)


def test_interruption_leaves_nothing(tmp_path):
    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "m", TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_end(tmp_path):
    calls = []
    made = write_checkpoint(tmp_path / "m", TINY, progress=lambda *call: calls.append(call))
    assert calls[-1] == (made.num_bytes, made.num_bytes) and calls == sorted(calls)


def test_too_large_for_the_disk(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**11)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(["make-checkpoint", str(tmp_path / "new" / "m"), "--preset", "lite"]) == 1
    error = capsys.readouterr().err
    assert "137.16 GB" in error and "100.00 GB are free" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- packed files --------------------------------------------------------------------------------


def layout(folder):
    """Every file's tensors with dtype, shape and offsets, and the bytes of config and index."""
    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            length = int.from_bytes(data[:8], "little")
            found[path.name] = (len(data), data[8 : 8 + length])
        elif path.name not in ("README.md", "provenance.json", "SHA256SUMS"):
            found[path.name] = data
    return found


@pytest.mark.parametrize("quant", PACKED)
@pytest.mark.parametrize("variant, shard_bytes", [("lite", 10**9), ("lite", 40_000), ("odd", 10**9)])
def test_packed_files_are_laid_out_as_convert_does(quant, variant, shard_bytes, tmp_path):
    config = {**TINY, **VARIANTS[variant].get("config_overrides", {})}
    write_checkpoint(tmp_path / "plain", config, mtp=True)
    convert_checkpoint(tmp_path / "plain", tmp_path / "converted", QUANT_PRESETS[quant], max_shard_bytes=shard_bytes)
    made = write_checkpoint(tmp_path / "m", config, mtp=True, quant=quant, max_shard_bytes=shard_bytes)
    assert layout(tmp_path / "m") == layout(tmp_path / "converted")
    assert made.num_bytes == sum(path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors"))
    assert verify_checkpoint(tmp_path / "m").ok


@pytest.mark.parametrize("quant", PACKED)
@pytest.mark.parametrize("variant", ["lite", "odd"])
def test_packed_values(quant, variant, tmp_path):
    """The packed bytes are those of the packer for the values that they stand for, and have the documented spread."""
    config = {**TINY, **VARIANTS[variant].get("config_overrides", {})}
    write_checkpoint(tmp_path / "m", config, mtp=True, quant=quant)
    stored = read_safetensors(tmp_path / "m" / "model.safetensors")
    checked = set()
    for name, spec in tensor_specs(config, mtp=True).items():
        packed = next((n for n in stored if n.startswith(name + ".")), None)
        if packed is None:
            continue
        form = packed.rpartition(".")[2]
        values, again = unpacked(np.frombuffer(stored[packed][2], np.uint8), form, spec.shape)
        assert again.tobytes() == bytes(stored[packed][2]), packed
        if not spec.std_tail:
            assert values.std() == pytest.approx(spec.std, rel=0.15 if values.size > 1000 else 0.4), packed
            assert abs(values.mean()) < 5 * spec.std / math.sqrt(values.size), packed
        else:
            assert values[-spec.std_tail[0] :].std() > 10 * values[: -spec.std_tail[0]].std()
        assert len(np.unique(values, axis=0)) == len(values)
        checked.add(form)
    assert checked == ({"int8_x8", "int8_row"} if quant == "int8" else {"int4_x8", "int8_x8", "int8_row", "int4_row"})


def unpacked(data, form, shape):
    """The values of packed bytes by the description in cpp/ops/packed.h, and the bytes of their integers and scales."""
    rows, cols = shape
    if form.endswith("row"):
        data = data.reshape(rows, -1)
        scales = data[:, -4:].copy().view("<f4")
        body = data[:, :-4]
        q = body.view(np.int8).astype(int)
        if "int4" in form:
            q = np.stack([body & 15, body >> 4], axis=-1).reshape(rows, -1).astype(int) - 8
        padded = np.zeros_like(q)
        padded[:, :cols] = q[:, :cols]
        if "int4" in form:
            again = (padded[:, ::2] + 8) | (padded[:, 1::2] + 8) << 4
        else:
            again = padded
        again = np.concatenate([again.astype(np.uint8), scales.view(np.uint8)], axis=1)
        return q[:, :cols] * scales, again
    groups, blocks = -(-rows // 8), -(-cols // 32)
    data = data.reshape(groups, -1)
    size = blocks * (128 if "int4" in form else 256)
    cells = data[:, :size].reshape(groups, blocks, -1, 8, 4)
    if "int4" in form:
        cells = np.concatenate([cells & 15, cells >> 4], axis=2).astype(int) - 8
    else:
        cells = cells.view(np.int8).astype(int)
    q = cells.transpose(0, 3, 1, 2, 4).reshape(groups * 8, blocks * 32)
    bits = data[:, size : size + blocks * 16].copy().view("<u2").reshape(groups, blocks, 8)
    scales = from_bf16(bits).transpose(0, 2, 1).reshape(groups * 8, blocks)
    again = np.zeros_like(data)
    padded = np.zeros_like(q)
    padded[:rows, :cols] = q[:rows, :cols]
    cells = padded.reshape(groups, 8, blocks, 8, 4).transpose(0, 2, 3, 1, 4)
    if "int4" in form:
        cells = (cells[:, :, :4] + 8) | (cells[:, :, 4:] + 8) << 4
    again[:, :size] = cells.reshape(groups, -1).astype(np.uint8)
    bits[-1, :, rows - 8 * (groups - 1) :] = 0
    again[:, size : size + blocks * 16] = bits.reshape(groups, -1).view(np.uint8)
    return (q * np.repeat(scales, 32, axis=1))[:rows, :cols], again


@pytest.mark.parametrize("quant", PACKED)
def test_a_packed_checkpoint_generates(quant, tmp_path):
    write_checkpoint(tmp_path / "m", TINY, quant=quant)
    token_ids, logits = generated(tmp_path / "m")
    assert len(token_ids) == 8 and np.isfinite(logits).all() and 0.5 < logits.std() < 5
    assert len(set(logits.argmax(axis=1).tolist())) > 8


def test_packed_bytes_do_not_depend_on_the_machine(tmp_path):
    write_checkpoint(tmp_path / "m", TINY, quant="int4", seed=7)
    digest = hashlib.sha256((tmp_path / "m" / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("82163caf4dc003a6")


@pytest.mark.parametrize("quant", [None, "int4"])
def test_sparse_tables(quant, tmp_path):
    config = preset_config("tiny", {"ngram_vocab_size_ratio": 500})
    dense = write_checkpoint(tmp_path / "dense", config, quant=quant)
    sparse = write_checkpoint(tmp_path / "sparse", config, quant=quant, sparse_tables=True)
    assert (sparse.num_bytes, sparse.parameters) == (dense.num_bytes, dense.parameters)
    assert sparse.disk_bytes < 0.4 * dense.disk_bytes
    tensors = [read_safetensors(tmp_path / name / "model.safetensors") for name in ("dense", "sparse")]
    for name, (_, _, raw) in tensors[0].items():
        assert tensors[1][name][2] == (bytes(len(raw)) if ".embedders." in name else raw)
    assert np.isfinite(generated(tmp_path / "sparse")[1]).all()


def test_a_disk_that_is_full(tmp_path, capsys, monkeypatch):
    """Some file systems find it out when they write, not before: the folder is removed, and the error is one line."""

    def fsync(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert main(["make-checkpoint", str(tmp_path / "m"), "--preset", "tiny", "--quant", "int4"]) == 1
    error = capsys.readouterr().err
    assert "[make-checkpoint]" in error and "No space left on device" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [100, 2_000_000])
def test_a_write_that_fails(limit, tmp_path):
    def lower_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "longcat", "make-checkpoint", str(tmp_path / "m"), "--preset", "small", "--quant"]
    done = subprocess.run([*command, "int4"], preexec_fn=lower_limit, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_model(tmp_path):
    program = (
        "import resource, sys; from longcat.checkpoint.random_weights import PRESETS, write_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_checkpoint(sys.argv[1], PRESETS['small'], quant='int4')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150 << 10  # [KiB]


# --- command line --------------------------------------------------------------------------------


def test_command(tmp_path, capsys, tiny):
    out = str(tmp_path / "m")
    arguments = ["--set", "vocab_size=2048", "moe_topk=2", "rope_scaling=null", "--set", "hidden_act=silu"]
    assert main(["make-checkpoint", out, "--preset", "tiny", "--layers", "1", *arguments, "--tokenizer", tiny]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: ") and "of bf16 in 1 file" in printed and printed.count("\n") == 1
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    fields = ("num_layers", "vocab_size", "moe_topk", "rope_scaling", "torch_dtype")
    assert [config[name] for name in fields] == [1, 2048, 2, None, "bfloat16"]
    with longcat.Engine(out, kv_cache_memory="1MiB") as engine:
        assert engine.generate("Once upon a time", max_tokens=4, temperature=0, ignore_eos=True).text
    assert verify_checkpoint(out).ok


def test_command_errors_are_one_line(tmp_path, capsys, tiny):
    out = str(tmp_path / "m")
    for arguments, code, tells in [
        (["--set", "moe_topk"], 2, "FIELD=VALUE"),
        (["--set", "moe_topc=3"], 2, 'did you mean "moe_topk"'),
        (["--set", "moe_topk=99"], 1, "moe_topk is 99"),
        (["--set", "hidden_size=100"], 1, "hidden_size is 100"),
        (["--layers", "0"], 1, "num_layers is 0"),
        (["--tokenizer", tiny], 2, "--set vocab_size=2048"),
        (["--tokenizer", str(tmp_path)], 1, "tokenizer.json is missing"),
    ]:
        assert main(["make-checkpoint", out, "--preset", "tiny", *arguments]) == code
        error = capsys.readouterr().err
        assert error.startswith("longcat: ") and error.count("\n") == 1 and tells in error, error
    assert not (tmp_path / "m").exists()


def test_arguments_of_the_function(tmp_path):
    with pytest.raises(ValueError, match="f16"):
        write_checkpoint(tmp_path / "m", TINY, dtype="f16")
    with pytest.raises(ValueError, match="bf16.*expected int8 or int4"):
        write_checkpoint(tmp_path / "m", TINY, quant="bf16")
    with pytest.raises(ValueError, match="huge"):
        preset_config("huge")
    assert preset_config("tiny", {"num_attention_heads": 3})["num_key_value_heads"] == 3
    assert "zero_expert_type" not in preset_config("tiny", {"zero_expert_type": None})

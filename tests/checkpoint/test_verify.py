"""`longcat verify`: damage is found and named, and a checkpoint's own facts are reported."""

import hashlib
import json
import struct
import sys
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat.checkpoint import scan
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.verify import verify_checkpoint
from longcat.cli import main
from longcat.support.text import printable

from support.checkpoints import E4M3_VALUES, make_checkpoint, read_safetensors, write_safetensors

NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    make_checkpoint(tmp_path / "model", seed=1, dtype="BF16", shards=3)
    return tmp_path / "model"


def lines(report, status):
    return [f"{check.name}: {check.detail}" for check in report.checks if check.status == status]


def failures(folder, **options):
    report = verify_checkpoint(folder, **options)
    found = lines(report, "FAIL")
    assert report.ok == (not found)
    assert all("\n" not in line and line.isprintable() for line in found)
    return found


def shard_of(folder, name):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def edit_tensor(folder, name, edit):
    """edit(dtype, shape, bytearray) -> the new entry, or None to take the tensor away."""
    path = shard_of(folder, name)
    tensors = read_safetensors(path)
    dtype, shape, raw = tensors.pop(name)
    entry = edit(dtype, shape, bytearray(raw))
    if entry:
        tensors[name] = entry
    write_safetensors(path, tensors)


def flip(path, byte, bit=0):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)


# --- files and tensors ---------------------------------------------------------------------------


def test_undamaged(folder, tiny):
    assert failures(folder) == [] and failures(folder, headers_only=True) == []
    report = verify_checkpoint(tiny)
    assert report.ok
    assert [check.name for check in report.checks] == [
        "config", "headers", "index", "tensors", "tokenizer", "chat template", "generation", "values", "hashes",
    ]  # fmt: skip
    assert lines(report, "warn") == [
        "hashes: none stored: changed bits are not found; --write-hashes stores them in SHA256SUMS"
    ]


def test_every_truncated_shard_is_named(folder):
    for number in (1, 3):
        path = folder / f"model-{number:05d}-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"")
    found = failures(folder)
    assert len(found) == 3
    for number, line in zip((1, 2, 3), found, strict=True):
        assert line.startswith("headers: ") and f"model-{number:05d}" in line and "download it again" in line


def test_missing_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in failures(folder)[0]


def test_header_of_a_shard_that_is_not_one(folder):
    (folder / "model-00003-of-00003.safetensors").write_bytes(struct.pack("<Q", 3) + b"[1]")
    (folder / "model-00001-of-00003.safetensors").write_bytes(struct.pack("<Q", 2**60))
    found = failures(folder)
    assert "model-00001" in found[0] and "model-00003" in found[1]


def test_missing_tensor_wrong_shape_wrong_dtype(folder):
    edit_tensor(folder, NORM, lambda dtype, shape, raw: ("I8", (len(raw),), bytes(raw)))
    edit_tensor(folder, HEAD, lambda dtype, shape, raw: (dtype, shape[::-1], bytes(raw)))
    (line,) = failures(folder)
    assert line.startswith("tensors: ") and NORM in line and HEAD in line and "expected [128, 96]" in line
    edit_tensor(folder, NORM, lambda dtype, shape, raw: None)
    assert "not in the shard" in failures(folder)[0]


def test_dtype_of_another_size(folder):
    edit_tensor(folder, NORM, lambda dtype, shape, raw: ("I64", shape, b"\1" * (8 * shape[0])))
    (line,) = failures(folder)
    assert f'"{NORM}" is I64, expected F32, BF16 or F16' in line


def test_unknown_tensor_and_stray_file(folder):
    path = shard_of(folder, NORM)
    tensors = read_safetensors(path) | {"model.extra": ("F32", (2,), bytes(8))}
    write_safetensors(path, tensors)
    write_safetensors(folder / "other.safetensors", {})
    report = verify_checkpoint(folder)
    warned = " ".join(lines(report, "warn"))
    assert report.ok and "model.extra" in warned and "other.safetensors" in warned and "total_size" in warned


def test_config_of_another_model(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    (line,) = failures(folder)
    assert line.startswith("config: ") and "LlamaForCausalLM" in line


def test_damaged_text_files(folder, tiny):
    for name, content, check in [
        ("tokenizer.json", "{", "tokenizer"),
        ("chat_template.jinja", "{% if %}", "chat template"),
        ("generation_config.json", "[1]", "generation"),
    ]:
        (folder / name).write_text(content)
        (line,) = failures(folder)
        assert line.startswith(check + ": ")
        (folder / name).unlink()
    (folder / "tokenizer.json").write_bytes((Path(tiny) / "tokenizer.json").read_bytes())
    assert "2048 ids, but vocab_size of config.json is 128" in failures(folder)[0]


def test_paths_that_are_no_folder(folder, tmp_path):
    for path, tells in [(tmp_path / "nowhere", "does not exist"), (folder / "config.json", "is a file")]:
        with pytest.raises(longcat.Error, match=tells):
            verify_checkpoint(path)


# --- values --------------------------------------------------------------------------------------


def all_patterns(dtype):
    """Every 8 or 16 bit pattern, or the upper halves of f32, as bytes, and the values."""
    if dtype == "F8_E4M3":
        codes = np.arange(256, dtype=np.uint8)
        return codes, E4M3_VALUES[codes & 127]
    bits = np.arange(2**16, dtype=np.uint16)
    if dtype == "F16":
        return bits, bits.view(np.float16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    return (bits if dtype == "BF16" else values.view(np.uint32)), values


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F8_E4M3"])
def test_scan_knows_every_bit_pattern(dtype):
    bits, values = all_patterns(dtype)
    finite = bits[np.isfinite(values)]
    assert _core.scan_tensor(finite.tobytes(), dtype) == (-1, False, False)
    rng = np.random.default_rng(0)
    for word, value in zip(bits[~np.isfinite(values)], values[~np.isfinite(values)], strict=True):
        count, at = 9000, int(rng.integers(9000))
        data = np.resize(finite, count)
        data[at] = word
        offset = bytes(at % 8)  # any alignment
        view = memoryview(offset + data.tobytes())[len(offset) :]
        assert _core.scan_tensor(view, dtype) == (at, bool(np.isnan(value)), False)


def test_scan_of_zeros_integers_and_nothing():
    assert _core.scan_tensor(bytes(100), "BF16") == (-1, False, True)
    assert _core.scan_tensor(b"\xff" * 99, "I8") == (-1, False, False)
    assert _core.scan_tensor(b"", "F32") == (-1, False, True)
    for data, dtype in [(bytes(3), "F32"), (bytes(4), "F4")]:
        with pytest.raises(ValueError):
            _core.scan_tensor(data, dtype)


@pytest.mark.parametrize("chunk", [64, 8 << 20])
@pytest.mark.parametrize("dtype, word", [("F32", 0x7FC00000), ("BF16", 0xFF80), ("F16", 0x7E01), ("FP8", 0x7F)])
def test_planted_value(dtype, word, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_CHUNK", chunk)
    make_checkpoint(tmp_path, seed=2, dtype=dtype)
    path = tmp_path / "model.safetensors"
    tensors = read_safetensors(path)
    name = "model.layers.1.mlps.0.up_proj.weight"
    tag, shape, raw = tensors[name]
    data = np.frombuffer(raw, f"u{len(raw) // np.prod(shape)}").copy()
    data[[4097, 5000]] = word
    tensors[name] = (tag, shape, data.tobytes())
    write_safetensors(path, tensors)
    (line,) = failures(tmp_path)
    kind = "an infinity" if dtype == "BF16" else "NaN"
    assert line == f'values: "{name}" has {kind} at element 4097 of [64, 96]'


def test_a_hole_is_told(folder, monkeypatch):
    monkeypatch.setattr(scan, "_CHUNK", 4096)
    monkeypatch.setattr(scan, "_MIN_HOLE", 4096)
    edit_tensor(folder, HEAD, lambda dtype, shape, raw: (dtype, shape, bytes(raw[:4096]) + bytes(len(raw) - 4096)))
    report = verify_checkpoint(folder)
    (line,) = [line for line in lines(report, "warn") if line.startswith("values")]
    assert report.ok and HEAD in line


KV_B = "model.layers.0.self_attn.0.kv_b_proj.weight"
UP = "model.layers.0.mlps.0.up_proj.weight"
TABLE = "model.ngram_embeddings.embedders.0.weight"
BIAS = "model.layers.0.mlp.router.e_score_correction_bias"


def zero(folder, name, begin=0):
    edit_tensor(folder, name, lambda dtype, shape, raw: (dtype, shape, bytes(raw[:begin]) + bytes(len(raw) - begin)))


def last_line(folder, capsys):
    capsys.readouterr()
    status = main(["verify", str(folder)])
    return status, capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("name", [NORM, HEAD, "model.embed_tokens.weight", KV_B])
def test_a_tensor_of_zeros_fails(folder, capsys, name):
    zero(folder, name)
    (line,) = failures(folder)
    assert line.startswith("values: zero bytes where weights should be") and f'all of "{name}" in model-' in line
    assert last_line(folder, capsys) == (1, f"{folder}: 1 check failed")


def test_a_hole_in_a_matrix_fails(folder, monkeypatch):
    monkeypatch.setattr(scan, "_MIN_HOLE", 512)  # smaller than the chunk that is read at once
    zero(folder, UP, begin=4096)
    (line,) = failures(folder)
    assert f'"{UP}" from byte ' in line


def test_zeros_over_a_table_are_no_clean_bill(folder, capsys):
    zero(folder, TABLE)
    report = verify_checkpoint(folder)
    assert report.ok and report.suspect and report.as_dict()["suspect"]
    assert any(f'all of "{TABLE}"' in line for line in lines(report, "warn"))
    status, line = last_line(folder, capsys)
    assert status == 0 and "no check failed" not in line and "Compare the files with their source" in line


def test_a_bias_may_be_zero(folder, capsys):
    zero(folder, BIAS)
    assert not verify_checkpoint(folder).suspect
    assert last_line(folder, capsys) == (0, f"{folder}: no check failed")


def test_zeros_over_packed_tensors_fail(tmp_path):
    make_checkpoint(tmp_path / "model", seed=1)
    convert_checkpoint(tmp_path / "model", tmp_path / "int4", PRESETS["int4"])
    path = tmp_path / "int4" / "model.safetensors"
    tensors = read_safetensors(path)
    name = next(name for name in tensors if ".q_a_proj." in name)
    dtype, shape, raw = tensors[name]
    write_safetensors(path, tensors | {name: (dtype, shape, bytes(len(raw)))})
    line, of_hashes = failures(tmp_path / "int4")
    assert f'all of "{name}"' in line and of_hashes.startswith("hashes: model.safetensors is ")


def test_progress_counts_every_byte(folder):
    calls = []
    verify_checkpoint(folder, progress=lambda done, total: calls.append((done, total)))
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert calls[-1] == (total, total) and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_stopping_ends_all_threads(folder):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_checkpoint(folder, progress=stop)


# --- hashes --------------------------------------------------------------------------------------


def test_one_flipped_bit_is_found(folder):
    report = verify_checkpoint(folder, write_hashes=True)
    assert report.ok and lines(report, "ok")[-1].startswith("hashes: SHA256SUMS written")
    names = set()
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")  # what sha256sum -c reads
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        names.add(name)
    assert names >= {"config.json", "model.safetensors.index.json", "model-00003-of-00003.safetensors"}
    assert lines(verify_checkpoint(folder), "ok")[-1] == "hashes: 5 files as in SHA256SUMS"

    rng = np.random.default_rng(1)
    for number in (1, 2, 3):
        path = folder / f"model-{number:05d}-of-00003.safetensors"
        (header_bytes,) = struct.unpack("<Q", path.read_bytes()[:8])
        for _ in range(3):
            byte = int(rng.integers(8 + header_bytes, path.stat().st_size))
            flip(path, byte)  # the lowest bit of a byte: the number stays finite
            found = failures(folder)
            assert any(line.startswith(f"hashes: {path.name} is ") for line in found), found
            flip(path, byte)
    assert failures(folder) == []


def test_a_flipped_bit_without_hashes_is_said_not_to_be_found(folder):
    path = folder / "model-00002-of-00003.safetensors"
    flip(path, path.stat().st_size - 2)
    report = verify_checkpoint(folder)
    assert report.ok and "hashes: none stored: changed bits are not found" in lines(report, "warn")[-1]


def test_hashes_of_a_damaged_checkpoint_are_not_written(folder):
    edit_tensor(folder, NORM, lambda dtype, shape, raw: (dtype, shape, b"\xff" * len(raw)))
    report = verify_checkpoint(folder, write_hashes=True)
    assert not report.ok and not (folder / "SHA256SUMS").exists()


def test_stored_hashes_are_not_replaced_by_those_of_changed_files(folder):
    verify_checkpoint(folder, write_hashes=True)
    stored = (folder / "SHA256SUMS").read_bytes()
    flip(folder / "model-00002-of-00003.safetensors", -2)
    assert len(failures(folder, write_hashes=True)) == 1
    assert (folder / "SHA256SUMS").read_bytes() == stored


def test_hash_files_of_others(folder):
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(f"{digest.upper()} *{name}\n" for name, digest in list(digests.items())[:2]))
    report = verify_checkpoint(folder)
    assert report.ok and "none stored for " in lines(report, "warn")[-1]
    for text, tells in [
        ("x", "line 1"),
        ("\n" + "0" * 64 + "  ../config.json", "line 2"),
        ("0" * 64 + "  gone.safetensors", "gone.safetensors"),
    ]:
        sums.write_text(text)
        assert tells in failures(folder)[0]


def test_records_of_a_download(folder, tmp_path):
    path = folder / "model-00001-of-00003.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"{'0' * 40}\n{digest}\n1700000000.0\n")
    assert "hashes: 1 file as in the record of its download" in lines(verify_checkpoint(folder), "ok")
    record.unlink()
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)
    assert "hashes: 1 file as in the record of its download" in lines(verify_checkpoint(folder), "ok")
    flip(blob, -2)
    assert path.name in failures(folder)[0]


# --- facts ---------------------------------------------------------------------------------------


def facts_of(folder):
    return {fact.topic: fact for fact in verify_checkpoint(folder, headers_only=True).facts}


def test_facts_of_the_trained_example(tiny):
    facts = facts_of(tiny)
    assert all(fact.as_assumed for fact in facts.values())
    assert "yarn x4.0 of 512" in facts["rope scaling"].found
    assert facts["router"].found == "classifier F32, correction bias F32"
    assert "<longcat_user> 5 special" in facts["role tags"].found
    assert "<longcat_tool_call> 9," in facts["think and tool tags"].found
    assert facts["ids 0 to 3"].found == "0 <longcat_unk>, 1 <longcat_s>, 2 </longcat_s>, 3 <longcat_pad>"
    assert "repetition_penalty 1.06" in facts["sampling defaults"].found
    assert facts["MTP layer"].found == "17 tensors" and facts["quantisation"].found == "none"
    assert facts["parse_model_response.py"].found == "absent"


def test_headers_reads_no_tensor(folder):
    edit_tensor(folder, NORM, lambda dtype, shape, raw: (dtype, shape, b"\xff" * len(raw)))
    report = verify_checkpoint(folder, headers_only=True)
    assert report.ok and all(check.name not in ("values", "hashes") for check in report.checks)
    with pytest.raises(ValueError):
        verify_checkpoint(folder, headers_only=True, write_hashes=True)


def test_facts_that_differ(folder, tiny):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": None, "embedding_scale": 55.4}))
    tokenizer = json.loads((Path(tiny) / "tokenizer.json").read_text())
    for entry in tokenizer["added_tokens"]:
        entry["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    edit_tensor(
        folder,
        "model.layers.0.mlp.router.classifier.weight",
        lambda dtype, shape, raw: ("BF16", shape, bytes(raw[: len(raw) // 2])),
    )
    facts = facts_of(folder)
    assert {topic for topic, fact in facts.items() if not fact.as_assumed} == {
        "rope scaling", "other config fields", "router", "think and tool tags",
    }  # fmt: skip
    assert facts["router"].found.startswith("classifier BF16 (1) and F32 (1)")
    assert "embedding_scale = 55.4" in facts["other config fields"].found
    assert "drops <longcat_think>" in facts["think and tool tags"].note
    assert "[2, 5]" in facts["sampling defaults"].note


def test_facts_of_fp8_and_mtp(tmp_path):
    make_checkpoint(tmp_path, seed=1, dtype="FP8", mtp=True)
    facts = facts_of(tmp_path)
    found = facts["quantisation"].found
    quantised, kept = found.split("; kept: ")
    assert "layers.self_attn.q_a_proj" in quantised and "layers.mlp.experts.up_proj" in quantised
    assert "ngram_embeddings.embedders" in kept and "lm_head" in kept and "layers.mlp.router.classifier" in kept
    assert "BF16" in facts["N-gram tables"].found
    assert facts["MTP layer"].as_assumed and facts["MTP layer"].found == "17 tensors"


def test_facts_of_a_converted_mtp_layer(tmp_path):
    make_checkpoint(tmp_path / "model", seed=1, mtp=True)
    convert_checkpoint(tmp_path / "model", tmp_path / "int8", PRESETS["int8"])
    fact = facts_of(tmp_path / "int8")["MTP layer"]
    assert fact.as_assumed and fact.found == "17 tensors"


def test_code_of_the_folder_is_reported_and_never_run(folder):
    marker = folder / "marker"
    (folder / "parse_model_response.py").write_text(f"open({str(marker)!r}, 'w')\n")
    assert facts_of(folder)["parse_model_response.py"].found.endswith("bytes")
    verify_checkpoint(folder)
    assert not marker.exists() and "parse_model_response" not in sys.modules


def test_facts_survive_odd_json(folder, tiny):
    tokenizer = json.loads((Path(tiny) / "tokenizer.json").read_text())
    for added in (None, 3, [1, {"content": 5}, {"content": "\x1b[31m"}]):
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": added, "model": []}))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"added_tokens_decoder": {"1": 2, "3": {"content": []}}})
        )
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": {"a": "\u202e"}}))
        report = verify_checkpoint(folder, headers_only=True)
        for fact in report.facts:
            assert (fact.topic + fact.found + fact.note).isprintable()


def test_printable():
    assert printable("a\n\x1b[31m\u202eé") == "a\\n\\x1b[31m\\u202eé"
    assert len(printable("x" * 10_000)) < 5000


# --- command line --------------------------------------------------------------------------------


def test_command(folder, capsys):
    assert main(["verify", str(folder), "--write-hashes"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("ok    config ") and out[-1] == f"{folder}: no check failed"
    flip(folder / "model-00001-of-00003.safetensors", -2)
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-2].startswith("FAIL  hashes ") and out[-1] == f"{folder}: 1 check failed"
    assert main(["verify", str(folder), "--headers"]) == 0
    assert "fact  rope scaling: yarn x8" in capsys.readouterr().out
    assert main(["verify", str(folder / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("longcat: ") and error.count("\n") == 1


def test_command_json(folder, capsys):
    assert main(["verify", str(folder), "--headers", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["checks"][0]["name"] == "config" and report["facts"]
    (folder / "model-00001-of-00003.safetensors").unlink()
    assert main(["verify", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and any(check["status"] == "FAIL" for check in report["checks"])

"""A damaged checkpoint ends in one clear line, quickly, and the process lives on."""

import json
import struct
import sys

import longcat
import pytest

from support.checkpoints import make_checkpoint, read_safetensors, write_safetensors

MODEL, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    make_checkpoint(tmp_path / "model", seed=1, dtype="BF16")
    return tmp_path / "model"


def open_engine(folder):
    longcat.Engine(str(folder), kv_cache_memory="1MiB", num_threads=1)


def truncate(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def edit_header(path, edit):
    """Rewrites the header text, its length and padding; the data stay."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    text = edit(header)
    text = text if isinstance(text, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def edit_tensors(path, edit):
    tensors = read_safetensors(path)
    edit(tensors)
    write_safetensors(path, tensors)


def edit_config(folder, **fields):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def set_length(path, length):
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def index_to(folder, file):
    names = read_safetensors(folder / MODEL)
    (folder.parent / "outside.safetensors").write_bytes((folder / MODEL).read_bytes())
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))


def shift_offsets(header, name, shift):
    header[name]["data_offsets"] = [at + shift for at in header[name]["data_offsets"]]


def twice(header):
    return json.dumps(header).encode()[:-1] + b"," + json.dumps({NORM: header[NORM]}).encode()[1:]


def wrong_dtype(tensors):
    _, shape, data = tensors[NORM]
    tensors[NORM] = ("I8", (2 * shape[0],), data)


def transposed(tensors):
    dtype, shape, data = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = (dtype, shape[::-1], data)


def only_pickles(folder):
    (folder / MODEL).rename(folder / "pytorch_model.bin")


def without_config(folder):
    (folder / CONFIG).unlink()


DAMAGE = {
    "truncated data": (lambda f: truncate(f / MODEL, 0.9), [MODEL, "truncated", "download it again"]),
    "truncated header": (lambda f: truncate(f / MODEL, 0.001), [MODEL, "truncated"]),
    "zero-size shard": (lambda f: (f / MODEL).write_bytes(b""), [MODEL, "0 bytes"]),
    "zeroed header": (lambda f: (f / MODEL).write_bytes(bytes(4096)), [MODEL]),
    "absurd header length": (lambda f: set_length(f / MODEL, 2**63 + 5), [MODEL, "9223372036854775813"]),
    "header length of the file": (
        lambda f: set_length(f / MODEL, (f / MODEL).stat().st_size),
        [MODEL, "truncated"],
    ),
    "absurd header": (lambda f: edit_header(f / MODEL, lambda h: b'{"a":' + b"[" * 10**6), [MODEL]),
    "absurd shape": (
        lambda f: edit_header(f / MODEL, lambda h: h[NORM].update(shape=[2**40] * 3)),
        [NORM, "overflow"],
    ),
    "overlapping offsets": (
        lambda f: edit_header(f / MODEL, lambda h: shift_offsets(h, NORM, -2)),
        ["inside"],
    ),
    "offsets past the end": (
        lambda f: edit_header(f / MODEL, lambda h: shift_offsets(h, NORM, 2**40)),
        [MODEL],
    ),
    "duplicate tensor": (lambda f: edit_header(f / MODEL, twice), [NORM, "twice"]),
    "dtype of another size": (
        lambda f: edit_header(f / MODEL, lambda h: h[NORM].update(dtype="F32")),
        [NORM, "F32"],
    ),
    "unknown dtype": (lambda f: edit_header(f / MODEL, lambda h: h[NORM].update(dtype="F4")), [NORM, "F4"]),
    "wrong dtype": (lambda f: edit_tensors(f / MODEL, wrong_dtype), [NORM]),
    "missing tensor": (lambda f: edit_tensors(f / MODEL, lambda t: t.pop(NORM)), [NORM]),
    "misshapen tensor": (lambda f: edit_tensors(f / MODEL, transposed), ["lm_head.weight"]),
    "NaN in the config": (lambda f: edit_config(f, rope_theta=float("nan")), [CONFIG, "JSON"]),
    "truncated config": (lambda f: truncate(f / CONFIG, 0.5), [CONFIG, "JSON"]),
    "empty config": (lambda f: (f / CONFIG).write_text(""), [CONFIG, "empty"]),
    "no config": (without_config, [CONFIG, "does not exist"]),
    "config of other sizes": (lambda f: edit_config(f, hidden_size=192), ["192"]),
    "config of more layers": (lambda f: edit_config(f, num_layers=3), ["layers.2"]),
    "duplicate config key": (
        lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace("{", '{"vocab_size": 1,', 1)),
        [CONFIG, "duplicate"],
    ),
    "index to the parent folder": (lambda f: index_to(f, "../outside.safetensors"), [INDEX, "plain name"]),
    "index to an absolute path": (
        lambda f: index_to(f, str(f.parent / "outside.safetensors")),
        [INDEX, "plain name"],
    ),
    "index to a missing shard": (lambda f: index_to(f, "x.safetensors"), [INDEX, "x.safetensors"]),
    "only pickles": (only_pickles, ["pytorch_model.bin", "pickle"]),
    "another architecture": (
        lambda f: edit_config(f, architectures=["LlamaForCausalLM"]),
        ["LlamaForCausalLM"],
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage(case, folder, refused):
    damage, tells = DAMAGE[case]
    damage(folder)
    message = refused(open_engine, folder)
    for part in tells:
        assert part in message


def test_undamaged(folder):
    open_engine(folder)


def test_paths_that_are_no_folder(folder, refused):
    assert "longcat pull" in refused(open_engine, "meituan-longcat/LongCat-Flash-Lite")
    assert "is a file" in refused(open_engine, folder / MODEL)


@pytest.mark.parametrize("damaged", [False, True])
def test_code_in_the_folder_is_never_run(damaged, folder, refused):
    """trust_remote_code has no effect: Python files and auto_map are ignored."""
    marker = folder / "marker"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    for name in (
        "modeling_longcat_ngram",
        "configuration_longcat_ngram",
        "tokenizer",
        "longcat",
        "json",
        "__init__",
    ):
        (folder / f"{name}.py").write_text(code)
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_longcat_ngram.LongcatFlashNgramForCausalLM"})
    path = list(sys.path)
    if damaged:
        truncate(folder / MODEL, 0.5)
        refused(open_engine, folder)
    else:
        open_engine(folder)
    assert not marker.exists() and sys.path == path
    assert "modeling_longcat_ngram" not in sys.modules and "configuration_longcat_ngram" not in sys.modules

"""A converted folder as others find it: packed tensors by docs/formats.md, model card, version, provenance, hashes."""

import hashlib
import inspect
import json

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.card import source_name
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.random_weights import TINY_CONFIG, tensor_specs, write_checkpoint
from longcat.checkpoint.verify import verify_checkpoint
from longcat.cli import main

from support import packed_reader
from support.checkpoints import VARIANTS, make_checkpoint, read_safetensors

GRIDS = [format for format in _core.PACKED_FORMATS if format.startswith("int") and not format.endswith("_row")]


@pytest.fixture
def source(tmp_path):
    make_checkpoint(tmp_path / "source", seed=3, dtype="BF16", **VARIANTS["odd"])
    (tmp_path / "source" / "README.md").write_text("# The source\n")
    return tmp_path / "source"


@pytest.fixture
def folder(source, tmp_path):
    convert_checkpoint(source, tmp_path / "out", PRESETS["int4"] | {"embedding": "fp8"}, max_shard_bytes=60_000)
    return tmp_path / "out"


def checks(folder, name, status):
    report = verify_checkpoint(folder)
    return [check.detail for check in report.checks if (check.name, check.status) == (name, status)]


# --- values --------------------------------------------------------------------------------------


def test_the_reader_is_short():
    lines = inspect.getsource(packed_reader).splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40


@pytest.mark.parametrize("shape", [(8, 32), (19, 70), (9, 1), (33, 101)])
@pytest.mark.parametrize("format", _core.PACKED_FORMATS)
def test_the_documentation_tells_every_value(format, shape):
    rng = np.random.default_rng(2)
    packed = [testing.pack_matrix(rng.standard_normal(shape).astype(np.float32), format)]
    if format in GRIDS:  # what files of others may hold
        most = 1 << int(format[3]) - 1
        q = rng.integers(-most, most, shape).astype(np.int8)
        scales = rng.integers(0, 0x7C00, (shape[0], -(-shape[1] // 32))).astype(np.uint16)
        packed.append(_core.pack_grid(q, scales, format))
    for data in packed:
        found = packed_reader.unpack(data, format, *shape)
        assert found.dtype == np.float32
        assert np.array_equal(found, _core.unpack(data, format, *shape))


@pytest.mark.parametrize("quant", PRESETS)
def test_a_converted_folder_is_read_by_its_documentation(source, tmp_path, quant):
    out = tmp_path / "out"
    convert_checkpoint(source, out, PRESETS[quant] | {"embedding": "fp8"}, max_shard_bytes=60_000)
    shapes = {name: shape for name, _, shape, *_ in _core.Checkpoint(str(source)).tensors()}
    stored = {name: raw for path in out.glob("*.safetensors") for name, (_, _, raw) in read_safetensors(path).items()}
    packed = [name for name in stored if name not in shapes]
    assert len({name.rpartition(".")[2] for name in packed}) >= 2
    for name in packed:
        base, _, format = name.rpartition(".")
        expected = _core.unpack(np.frombuffer(stored[name], np.uint8), format, *shapes[base])
        assert np.array_equal(packed_reader.read_packed(out, name, *shapes[base]), expected), name


# --- the files beside the weights ----------------------------------------------------------------


def test_the_files_of_a_converted_folder(source, folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "README.source.md", "provenance.json", "SHA256SUMS", "model.safetensors.index.json"}
    assert (folder / "README.source.md").read_bytes() == (source / "README.md").read_bytes()
    hashes = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert hashes.keys() == names - {"SHA256SUMS"}
    for name, digest in hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    record = json.loads((folder / "provenance.json").read_text())
    assert record["made_by"]["longcat"] == longcat.__version__ and record["made_by"]["command"] == "convert"
    assert record["made_by"]["options"] == {"formats": PRESETS["int4"] | {"embedding": "fp8"}, "calibration": None}
    size = (source / "model.safetensors").stat().st_size
    assert record["source"] == {"name": "source", "files": {"model.safetensors": {"bytes": size}}}
    card = (folder / "README.md").read_text()
    for format, sums in record["formats"].items():
        assert f"| {format} |" in card and sums["tensors"] > 0 and sums["bytes"] > 0
    assert "base_model" not in card and "whose card is README.source.md" in card
    assert checks(folder, "provenance", "ok") == [f"of source, by longcat convert {longcat.__version__}"]
    assert checks(folder, "hashes", "ok") == [f"{len(hashes)} files as in SHA256SUMS"]


def test_the_hashes_of_the_source_are_kept(source, tmp_path):
    verify_checkpoint(source, write_hashes=True)
    convert_checkpoint(source, tmp_path / "out", PRESETS["int8"])
    files = json.loads((tmp_path / "out" / "provenance.json").read_text())["source"]["files"]
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert files["model.safetensors"]["sha256"] == digest


def test_source_name(tmp_path):
    snapshot = tmp_path / "models--meituan-longcat--LongCat-Flash-Lite" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    assert source_name(snapshot) == "meituan-longcat/LongCat-Flash-Lite"
    assert source_name(tmp_path / "some" / ".." / "folder") == "folder"


@pytest.mark.parametrize("sparse_tables", [False, True])
def test_random_weights_have_the_files_too(tmp_path, sparse_tables):
    out = tmp_path / "made"
    write_checkpoint(out, TINY_CONFIG, quant="int4", sparse_tables=sparse_tables)
    assert checks(out, "provenance", "ok") == [
        f"of random values with seed 0, by longcat make-checkpoint {longcat.__version__}"
    ]
    assert "N-gram tables | int4_row |" in (out / "README.md").read_text()
    # Zeros that take no room on the disk are not hashed.
    assert checks(out, "hashes", "warn" if sparse_tables else "ok")
    write_checkpoint(tmp_path / "official", TINY_CONFIG)
    assert {path.name for path in (tmp_path / "official").iterdir()} == {"config.json", "model.safetensors"}


def test_random_tables_in_fp8(tmp_path):
    out = tmp_path / "made"
    write_checkpoint(out, TINY_CONFIG, quant="int8", tables="fp8")
    for name, spec in tensor_specs(TINY_CONFIG).items():
        if "embedders" in name:
            values = packed_reader.read_packed(out, f"{name}.fp8_row", *spec.shape)
            assert values.std() == pytest.approx(spec.std, rel=0.1) and len(np.unique(values, axis=0)) == len(values)
    with longcat.Engine(out) as engine:
        assert np.isfinite(engine.forward([3, 4, 5])).all()
    with pytest.raises(ValueError, match='tables "fp8"; expected fp8, int8, int4, with quant'):
        write_checkpoint(tmp_path / "other", TINY_CONFIG, tables="fp8")


def test_another_format_version_is_refused(folder):
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes().replace(b'"longcat_format_version":"1"', b'"longcat_format_version":"2"'))
    message = rf'{shard.name}: longcat_format_version is "2", expected "1": install the longcat that wrote the file'
    with pytest.raises(longcat.Error, match=message):
        longcat.Engine(folder)
    [line] = checks(folder, "headers", "FAIL")
    assert "longcat_format_version" in line


@pytest.mark.parametrize(
    "edit, tells",
    [
        ({"format_version": "2"}, 'format_version is "2"; expected "1": install the longcat that wrote the folder'),
        ({"format_version": None}, 'format_version is null; expected "1"'),
        ({"made_by": []}, "has no made_by or source; expected objects"),
        ({"formats": {}}, "tells of other tensors than the folder has, in "),
        ({"formats": {"int4_x8": {"tensors": 1, "bytes": 1}}}, "tells of other tensors than the folder has, in "),
    ],
)
def test_provenance_is_checked(folder, edit, tells):
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    [line] = checks(folder, "provenance", "FAIL")
    assert tells in line
    path.write_text("{")
    [line] = checks(folder, "provenance", "FAIL")
    assert "provenance.json" in line
    path.unlink()
    [line] = checks(folder, "provenance", "warn")
    assert "what the packed weights were made of is not known" in line


@pytest.mark.parametrize("format", ["int4_x8", "int8_x8", "int4_row", "fp8_row"])
def test_packed_values_that_are_not_finite_are_found(source, folder, format):
    """A NaN in the last group or row."""
    checkpoint = _core.Checkpoint(str(folder))
    name, _, (units, stride), shard, begin, _ = next(t for t in checkpoint.tensors() if t[0].endswith("." + format))
    rows, columns = next(shape for n, _, shape, *_ in _core.Checkpoint(str(source)).tensors() if name.startswith(n))
    blocks = -(-columns // 32)
    at, bits = {"int4_x8": (blocks * 128, b"\xc0\x7f"), "int8_x8": (blocks * 256, b"\xc0\x7f")}.get(
        format, (0, b"\x7f") if format == "fp8_row" else (stride - 4, b"\0\0\xc0\x7f")
    )
    path = folder / checkpoint.shards()[shard][0]
    del checkpoint
    raw = bytearray(path.read_bytes())
    at += begin + (units - 1) * stride
    raw[at : at + len(bits)] = bits
    path.write_bytes(raw)
    [line] = checks(folder, "values", "FAIL")
    where = f"rows {8 * units - 8} to {8 * units - 1}" if "_x8" in format else f"row {rows - 1}"
    assert line == f'"{name}" has NaN or an infinity in {where}'


def test_fp8_is_for_rows_that_are_looked_up(source, tmp_path, capsys):
    with pytest.raises(ValueError, match='core="fp8"; expected keep, bf16, int8, int4'):
        convert_checkpoint(source, tmp_path / "out", {"core": "fp8"})
    assert main(["convert", str(source), str(tmp_path / "out"), "--quant", "int4", "--head", "fp8"]) == 2
    assert "--head fp8; expected keep, bf16, int8, int4" in capsys.readouterr().err
    make_checkpoint(tmp_path / "tied", seed=3, config_overrides={"tie_word_embeddings": True})
    with pytest.raises(ValueError, match="the head is the same matrix"):
        convert_checkpoint(tmp_path / "tied", tmp_path / "out", {"embedding": "fp8"})
    assert not list(tmp_path.glob("out*"))

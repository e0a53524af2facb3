"""Which files of a folder are a checkpoint, and that they belong together."""

import json
import os
import struct

import pytest
from longcat import _testing as testing

from support.checkpoints import make_checkpoint, read_safetensors, write_safetensors

INDEX = "model.safetensors.index.json"


def open_checkpoint(folder):
    return testing.open_checkpoint(str(folder))


def tensor(values=(1, 2), dtype="U8"):
    return (dtype, (len(values),), bytes(values))


def write_index(folder, weight_map, **more):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map, **more}))


def test_one_file(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": tensor(), "empty": ("F32", (0, 3), b"")})
    assert open_checkpoint(tmp_path) == {"a": ("U8", [2]), "empty": ("F32", [0, 3])}


def test_a_single_file_of_another_name(tmp_path):
    write_safetensors(tmp_path / "weights.safetensors", {"a": tensor()})
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert open_checkpoint(tmp_path) == {"a": ("U8", [2])}


def test_shards(tmp_path):
    make_checkpoint(tmp_path / "whole", dtype="BF16", mtp=True)
    make_checkpoint(tmp_path / "shards", dtype="BF16", mtp=True, shards=3)
    whole, shards = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "shards")
    assert whole == shards
    written = read_safetensors(tmp_path / "whole" / "model.safetensors")
    assert whole == {name: (dtype, list(shape)) for name, (dtype, shape, _) in written.items()}


def test_the_index_comes_before_other_files(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"old": tensor()})
    write_safetensors(tmp_path / "x.safetensors", {"a": tensor(), "not listed": tensor()})
    write_index(tmp_path, {"a": "x.safetensors"}, metadata={"total_size": 2, "more": [None, 1.5, {"deep": []}]})
    assert sorted(open_checkpoint(tmp_path)) == ["a", "not listed"]


def test_links_to_blobs_elsewhere(tmp_path):
    """The Hugging Face cache keeps the files in blobs/ and links to them."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    write_safetensors(tmp_path / "blob", {"a": tensor()})
    (folder / "x.safetensors").symlink_to(tmp_path / "blob")
    write_index(folder, {"a": "x.safetensors"})
    assert list(open_checkpoint(folder)) == ["a"]


def test_odd_folder_names(tmp_path, refused):
    folder = tmp_path / "龙猫 \n\x1b é"
    folder.mkdir()
    assert "\\u000a" in refused(open_checkpoint, folder)
    write_safetensors(folder / "model.safetensors", {"a": tensor()})
    assert list(open_checkpoint(folder)) == ["a"]


OUTSIDE = {
    "parent": "../x.safetensors",
    "absolute": "/etc/x.safetensors",
    "down and up": "a/../../x.safetensors",
    "subfolder": "a/x.safetensors",
    "backslash": "..\\x.safetensors",
    "dots": "..",
    "empty": "",
    "suffix only": ".safetensors",
    "another kind": "pytorch_model.bin",
    "NUL": "x\0.safetensors",
    "newline": "x\n.safetensors",
    "long": "x" * 300 + ".safetensors",
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_the_index_names_plain_files_only(case, tmp_path, refused):
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path, folder):
        write_safetensors(place / "x.safetensors", {"a": tensor()})
    write_index(folder, {"a": OUTSIDE[case]})
    message = refused(open_checkpoint, folder)
    assert message.startswith("[safetensors] ") and INDEX in message
    assert "plain name of a .safetensors file" in message


BAD_INDEX = {
    "not JSON": (b"{", "not valid JSON"),
    "a list": (b"[]", "object"),
    "no weight_map": (b'{"metadata": {}}', "weight_map"),
    "empty weight_map": (b'{"weight_map": {}}', "empty"),
    "weight_map is a list": (b'{"weight_map": []}', "weight_map"),
    "weight_map is a string": (b'{"weight_map": "x.safetensors"}', "weight_map"),
    "weight_map is null": (b'{"weight_map": null}', "weight_map"),
    "weight_map twice": (b'{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}', "duplicate"),
    "tensor twice": (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "twice"),
    "a number for a file": (b'{"weight_map": {"a": 1}}', "file name"),
    "a list for a file": (b'{"weight_map": {"a": ["x.safetensors"]}}', "file name"),
    "deep": (b'{"metadata": ' + b"[" * 100_000, "nested"),
    "empty file": (b"", "empty"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_bad_index(case, tmp_path, refused):
    text, tells = BAD_INDEX[case]
    write_safetensors(tmp_path / "x.safetensors", {"a": tensor()})
    (tmp_path / INDEX).write_bytes(text)
    message = refused(open_checkpoint, tmp_path)
    assert message.startswith("[safetensors] ") and INDEX in message and tells in message


def test_index_and_shards_that_do_not_belong_together(tmp_path, refused):
    write_safetensors(tmp_path / "x.safetensors", {"a": tensor()})
    write_safetensors(tmp_path / "y.safetensors", {"b": tensor()})
    write_index(tmp_path, {"a": "y.safetensors", "b": "y.safetensors", "c": "x.safetensors"})
    message = refused(open_checkpoint, tmp_path)
    assert "2 tensors" in message and "a, c" in message
    write_safetensors(tmp_path / "y.safetensors", {"b": tensor(), "a": tensor()})
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})
    message = refused(open_checkpoint, tmp_path)
    assert '"a" is also in x.safetensors' in message and "y.safetensors" in message


def test_missing_shards_are_listed(tmp_path, refused):
    write_safetensors(tmp_path / "x.safetensors", {"a": tensor()})
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors", "c": "z.safetensors"})
    message = refused(open_checkpoint, tmp_path)
    assert "2 of 3 shards" in message and "y.safetensors, z.safetensors" in message


@pytest.mark.parametrize(
    "files, tells",
    [
        ([], "no .safetensors file"),
        (["pytorch_model.bin"], "pytorch_model.bin is a pickle"),
        (["consolidated.pth"], "consolidated.pth is a pickle"),
        (["model.gguf"], "model.gguf is a GGUF file"),
        (["a.safetensors", "b.safetensors"], "2 .safetensors files"),
    ],
)
def test_folders_without_a_checkpoint(files, tells, tmp_path, refused):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    assert tells in refused(open_checkpoint, tmp_path)


def test_paths_that_are_no_folder(tmp_path, refused):
    assert "longcat pull" in refused(testing.open_checkpoint, "meituan-longcat/LongCat-Flash-Lite")
    assert "does not exist" in refused(testing.open_checkpoint, "")
    assert "does not exist" in refused(testing.open_checkpoint, "no\0where")
    write_safetensors(tmp_path / "model.safetensors", {"a": tensor()})
    assert "is a file" in refused(open_checkpoint, tmp_path / "model.safetensors")


def test_shards_that_are_no_safetensors_files(tmp_path, refused):
    path = tmp_path / "model.safetensors"
    for content, tells in [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes found"),
        (struct.pack("<Q", 100) + b"{}", "truncated: 10 bytes found, at least 8 + 100"),
        (struct.pack("<Q", 2**63) + b"{}", "9223372036854775808"),
        (struct.pack("<Q", 2**24 + 1) + b"{}", "2 to 16777216"),
        (struct.pack("<Q", 0), "header of 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "not a safetensors file"),
        (b"PK\3\4 a pickle of torch in disguise", "not a safetensors file"),
    ]:
        path.write_bytes(content)
        message = refused(open_checkpoint, tmp_path)
        assert message.startswith(f"[safetensors] {path}: ") and tells in message
    path.unlink()
    path.mkdir()
    assert "not a regular file" in refused(open_checkpoint, tmp_path)
    path.rmdir()
    os.mkfifo(path)  # must not wait for a writer
    assert "not a regular file" in refused(open_checkpoint, tmp_path)


def test_every_truncation_is_refused(tmp_path, refused):
    write_safetensors(tmp_path / "whole", {"a": tensor((1, 2, 3, 4)), "b": tensor()})
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        message = refused(open_checkpoint, tmp_path)
        assert f"{length} bytes found" in message and "download it again" in message
    path.write_bytes(whole + b"x")
    assert "too long" in refused(open_checkpoint, tmp_path)

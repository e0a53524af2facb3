"""Headers of GGUF files: every field of a damaged one is named in one line."""

import random
import struct
from pathlib import Path

import longcat
import pytest
from longcat.checkpoint.sources.gguf.header import Part, open_parts
from longcat.checkpoint.sources.gguf.model import GgufModel

from support.gguf_files import TYPES, header, make_model, string, value, write

Q8_0 = TYPES["Q8_0"][0]
DATA = bytes(34 * 4)  # four rows of a block


def parsed(tmp_path: Path, content: bytes) -> Part:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    return Part(path)


def padded(head: bytes, data: bytes = DATA, alignment: int = 32) -> bytes:
    return head + bytes(-len(head) % alignment) + data


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(tmp_path, version):
    metadata = {
        "u8": value(255, "u8"),
        "i8": value(-128, "i8"),
        "u16": value(65535, "u16"),
        "i64": value(-(2**63), "i64"),
        "u64": value(2**64 - 1, "u64"),
        "f32": 1e-5,
        "f64": value(0.1, "f64"),
        "yes": True,
        "text": "größe",
        "words": ["a", "", "c"],
        "numbers": [1, -2, 3],
        "empty": struct.pack("<IIQ", 9, 4, 0),
    }
    part = parsed(tmp_path, padded(header(metadata, [("w", Q8_0, (32, 4), 0)], version=version)))
    found = part.metadata
    assert [found[key] for key in ("u8", "i8", "u16", "i64", "u64")] == [255, -128, 65535, -(2**63), 2**64 - 1]
    assert found["f32"] == 1e-5 and found["f64"] == 0.1 and found["yes"] is True and found["text"] == "größe"
    assert found["words"] == ["a", "", "c"] and found["numbers"].tolist() == [1, -2, 3] and len(found["empty"]) == 0
    assert [(t.name, t.shape, t.end - t.begin) for t in part.tensors] == [("w", (4, 32), 34 * 4)]
    assert part.read(part.tensors[0].begin, 4).tolist() == [0, 0, 0, 0]


def test_the_alignment_of_the_file_counts(tmp_path):
    head = header({"general.alignment": 256}, [("w", Q8_0, (32, 4), 256)])
    part = parsed(tmp_path, padded(head, bytes(256) + DATA, 256))
    assert part.tensors[0].begin == (len(head) + 255) // 256 * 256 + 256


ONE = [("w", Q8_0, (32, 4), 0)]
COUNTS = b"GGUF" + struct.pack("<I", 3)
# what is wrong -> (content, what the line says)
DAMAGED = {
    "empty": (b"", "the magic number of 4 B at byte 0; expected at most 0 B there, where the file ends"),
    "no GGUF": (b"PK\3\4" + bytes(60), r"begins with b'PK\\x03\\x04'; expected b'GGUF'"),
    "version 1": (header({}, ONE, version=1), "version 1; expected version 2 or 3"),
    "big-endian": (header({}, ONE, version=3 << 24), "a big-endian header; expected version 2 or 3"),
    "tensors without end": (COUNTS + struct.pack("<QQ", 2**63, 0), f"{2**63} tensors and 0 metadata by its header"),
    "metadata without end": (COUNTS + struct.pack("<QQ", 0, 2**64 - 1), f"0 tensors and {2**64 - 1} metadata"),
    "negative counts": (COUNTS + struct.pack("<qq", -1, -1) + bytes(99), f"{2**64 - 1} tensors"),
    "cut in a key": (header({"general.name": "x" * 50}, [])[:40], "the name of metadata 0 of 12 B at byte 32"),
    "cut in a value": (header({"general.name": "x"}, [])[:-1], '"general.name" of 1 B'),
    "cut in a tensor": (header({}, ONE)[:-1], 'the offset of tensor "w" of 8 B'),
    "cut in the data": (padded(header({}, ONE))[:-1], 'tensor "w" in bytes 96 to 232; expected at most 231'),
    "huge key": (COUNTS + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**20) + bytes(99), "of 1048576 bytes"),
    "huge string": (
        header({"a": struct.pack("<IQ", 8, 2**62)}, []),
        f'"a" of {2**62} bytes at byte 45; expected at most',
    ),
    "huge array": (header({"a": struct.pack("<IIQ", 9, 4, 2**61)}, []), r'"a" of 9223372036\.85 GB at byte'),
    "huge array of strings": (header({"a": struct.pack("<IIQ", 9, 8, 2**50)}, []), f'"a" with {2**50} strings'),
    "array in an array": (header({"a": struct.pack("<IIQ", 9, 9, 1)}, []), "of type 9 .an array in an array."),
    "unknown kind of value": (header({"a": struct.pack("<I", 13)}, []), '"a" of type 13; expected a type from 0 to 12'),
    "truth of 2": (header({"a": struct.pack("<IB", 7, 2)}, []), '"a" with a truth value of 2; expected 0 or 1'),
    "no UTF-8": (header({"a": struct.pack("<IQ", 8, 1) + b"\xff"}, []), '"a" that is not UTF-8 at byte'),
    "key twice": (
        COUNTS + struct.pack("<QQ", 0, 2) + (string("a") + value(1)) * 2,
        'metadata "a" twice; expected each once',
    ),
    "tensor twice": (padded(header({}, ONE * 2)), 'tensor "w" twice; expected each once'),
    "no dimensions": (
        padded(header({}, [("w", Q8_0, (), 0)]), bytes(99)),
        'tensor "w" of 0 dimensions; expected 1 to 4',
    ),
    "many dimensions": (padded(header({}, [("w", Q8_0, (32,) * 5, 0)])), 'tensor "w" of 5 dimensions'),
    "dimension of 0": (
        padded(header({}, [("w", Q8_0, (32, 0), 0)])),
        r'"w" of shape \[32, 0\] in Q8_0; expected rows of',
    ),
    "half a block": (padded(header({}, [("w", Q8_0, (48, 2), 0)])), r"shape \[48, 2\] in Q8_0; expected rows of whole"),
    "overflow": (padded(header({}, [("w", Q8_0, (2**62, 2**62, 4), 0)])), 'tensor "w" in bytes'),
    "unknown type": (padded(header({}, [("w", 16, (32, 4), 0)])), 'tensor "w" of type IQ2_XXS; expected one of F32'),
    "type without a name": (padded(header({}, [("w", 999, (32, 4), 0)])), 'tensor "w" of type 999; expected one of'),
    "odd offset": (padded(header({}, [("w", Q8_0, (32, 4), 8)])), 'tensor "w" at offset 8; expected a multiple of 32'),
    "offset behind the end": (padded(header({}, [("w", Q8_0, (32, 4), 2**63)])), 'tensor "w" in bytes'),
    "overlapping": (
        padded(header({}, [*ONE, ("v", Q8_0, (32, 4), 64)]), bytes(999)),
        'tensor "v" and tensor "w" in the same bytes; expected each in its own',
    ),
    "same place": (padded(header({}, [*ONE, ("v", Q8_0, (32, 1), 0)])), "in the same bytes"),
    "alignment of 0": (padded(header({"general.alignment": 0}, ONE)), "has general.alignment 0; expected 1 to 1048576"),
    "alignment of 24": (padded(header({"general.alignment": 24}, ONE)), "alignment 24; expected a power of two"),
    "alignment in words": (padded(header({"general.alignment": "x"}, ONE)), 'alignment "x"; expected an integer'),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named_in_one_line(tmp_path, kind):
    content, line = DAMAGED[kind]
    with pytest.raises(longcat.Error, match=line) as caught:
        parsed(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"[gguf] {tmp_path / 'a.gguf'} ") and "\n" not in message and len(message) < 500


def test_names_from_the_file_are_printed_safely(tmp_path):
    with pytest.raises(longcat.Error) as caught:
        parsed(tmp_path, padded(header({}, [("\x1b[31m" + "x" * 5000, 99, (32, 4), 0)])))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_file_is_refused(tmp_path):
    for path, line in ((tmp_path, "is a folder; expected a regular file"), (tmp_path / "no.gguf", "cannot be read")):
        with pytest.raises(longcat.Error, match=line):
            Part(path)


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    content = padded(header({}, ONE))
    part = parsed(tmp_path, content)
    for changed in (b"", content[:-1], content + b"x"):
        (tmp_path / "a.gguf").write_bytes(changed)
        with pytest.raises(longcat.Error, match="was changed while it was read; expected it to stay as it is"):
            part.read(part.tensors[0].begin, 34)


@pytest.fixture
def split(tmp_path):
    make_model(tmp_path / "m", files=3)
    return tmp_path


def test_the_files_of_a_model_are_read_together(split):
    for number in (1, 3):
        parts = open_parts(split / f"m-0000{number}-of-00003.gguf")
        assert [part.path.name for part in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
        assert {tensor.file for part in parts for tensor in part.tensors} == {0, 1, 2}


def test_files_that_do_not_belong_together_are_refused(split):
    first, second, third = (split / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    second.rename(split / "other.gguf")
    with pytest.raises(longcat.Error, match="m-00002-of-00003.gguf is missing, 1 of 1; expected all 3 files"):
        open_parts(first)
    with pytest.raises(
        longcat.Error, match="one of 3 files by its split.count; expected a name like NAME-00001-of-00003"
    ):
        open_parts(split / "other.gguf")
    second.write_bytes(third.read_bytes())
    with pytest.raises(longcat.Error, match="has split.no 2; expected 1: the files are not of one model"):
        open_parts(first)
    write(second, {"split.no": value(1, "u16"), "split.count": value(3, "u16")}, [])
    with pytest.raises(longcat.Error, match=r"has split.tensors.count \d+; the 3 files have \d+ tensors"):
        open_parts(first)


SMALL = {
    **{"embedding_length": 32, "feed_forward_length": 32, "expert_feed_forward_length": 32},
    **{"attention.kv_lora_rank": 32, "ngram.neighbor_num": 2, "ngram.split_num": 1, "ngram.vocab_size_ratio": 1},
}


def test_random_changes_raise_only_our_error(tmp_path):
    path = tmp_path / "m.gguf"
    make_model(path, changes=SMALL)
    content, rng = path.read_bytes(), random.Random(3)
    end = content.rindex(b"blk.1") + 64
    read = 0
    for _ in range(300):
        at, changed = rng.randrange(end), bytearray(content)
        width = rng.choice([1, 4, 8])
        number = rng.choice([0, 1, rng.randrange(256), 2**31, 2**63, 2**64 - 1])
        changed[at : at + width] = number.to_bytes(8, "little")[:width]
        path.write_bytes(changed)
        try:
            model = GgufModel(path)
            for name, tensor in model.tensors().items():
                model.rows(name, 0, min(tensor.shape[0], 2) if len(tensor.shape) == 2 else 1)
            read += 1
        except longcat.Error as error:
            assert "\n" not in str(error)
    assert 10 < read < 290

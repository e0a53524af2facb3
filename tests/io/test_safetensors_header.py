"""The safetensors header: what is accepted means what it says, everything else is one clear line."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longcat import _testing as testing

DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}
parse = testing.parse_safetensors_header


def entry(dtype="F32", shape=(4,), data_offsets=(0, 16), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(data_offsets), **more}


def header(**tensors) -> bytes:
    return json.dumps(tensors).encode()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=30).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 50), max_size=4)),
        max_size=8,
    ),
    st.one_of(st.none(), st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3)),
    st.integers(0, 9),
    st.booleans(),
)
def test_valid_headers_are_read_as_written(tensors, metadata, padding, ascii_only):
    written, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        written[name] = entry(dtype, shape, (offset, end))
        offset = end
    fields = written if metadata is None else {"__metadata__": metadata, **written}
    text = json.dumps(fields, ensure_ascii=ascii_only).encode() + b" " * padding
    expected = {n: (e["dtype"], e["shape"], *e["data_offsets"]) for n, e in written.items()}
    assert {n: tuple(e) for n, e in parse(text, offset).items()} == expected


def test_tensors_need_not_be_listed_in_file_order():
    text = header(b=entry(data_offsets=(16, 32)), z=entry(shape=(0, 7), data_offsets=(16, 16)), a=entry())
    assert parse(text, 32)["b"] == ("F32", [4], 16, 32)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_dtypes(dtype):
    size = 6 * DTYPE_BYTES[dtype]
    assert parse(header(a=entry(dtype, (2, 3), (0, size))), size)["a"] == (dtype, [2, 3], 0, size)


HUGE = 2**63 - 1
REFUSED = {
    # name: (header, bytes of data, what the message must tell)
    "unknown dtype": (header(a=entry("F64", (2,))), 16, ["a", "F64", "BF16"]),
    "lower-case dtype": (header(a=entry("f32")), 16, ["f32"]),
    "dtype is a number": (header(a=entry(4)), 16, ["dtype"]),
    "size is not shape x dtype": (header(a=entry("BF16")), 16, ["span 16 bytes", "BF16 [4]", "8"]),
    "shape overflows": (header(a=entry(shape=(2**40, 2**40))), 16, ["overflow"]),
    "shape overflows to the right size": (header(a=entry("U8", (2**32, 2**32, 1), (0, 0))), 0, ["overflow"]),
    "shape x dtype overflows": (header(a=entry("I64", (2**61,), (0, 0))), 0, ["overflow"]),
    "overflow behind a zero": (header(a=entry(shape=(0, HUGE, HUGE), data_offsets=(0, 0))), 0, ["overflow"]),
    "dimension beyond 63 bits": (header(a=entry(shape=(2**63,))), 16, ["63 bits"]),
    "dimension beyond 64 bits": (header(a=entry(shape=(2**64,))), 16, ["shape", "64"]),
    "negative dimension": (header(a=entry(shape=(-4,))), 16, ["shape", "negative"]),
    "dimension is a fraction": (header(a=entry(shape=(4.0,))), 16, ["shape", "fraction"]),
    "dimension is a string": (header(a=entry(shape=("4",))), 16, ["shape", "a string"]),
    "nested shape": (header(a=entry(shape=([4],))), 16, ["shape", "a list"]),
    "shape is a number": (b'{"a":{"dtype":"F32","shape":4,"data_offsets":[0,16]}}', 16, ["shape"]),
    "nine dimensions": (header(a=entry(shape=(1,) * 8 + (4,))), 16, ["dimensions"]),
    "offsets reversed": (header(a=entry(data_offsets=(16, 0))), 16, ["[16, 0]"]),
    "one offset": (header(a=entry(data_offsets=(0,))), 16, ["data_offsets", "1"]),
    "three offsets": (header(a=entry(data_offsets=(0, 8, 16))), 16, ["data_offsets"]),
    "negative offset": (header(a=entry(data_offsets=(-16, 0))), 16, ["data_offsets", "negative"]),
    "offset wraps around": (header(a=entry(data_offsets=(2**64 - 8, 8))), 16, ["data_offsets"]),
    "offsets beyond 64 bits": (header(a=entry(data_offsets=(2**64, 2**64 + 16))), 16, ["data_offsets"]),
    "no dtype": (b'{"a":{"shape":[],"data_offsets":[0,0]}}', 0, ["a", "no dtype"]),
    "no shape": (b'{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4, ["no shape"]),
    "no offsets": (b'{"a":{"dtype":"F32","shape":[]}}', 4, ["no data_offsets"]),
    "unknown field": (header(a=entry(strides=[1])), 16, ["strides"]),
    "field twice": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        16,
        ["duplicate", "dtype"],
    ),
    "tensor twice": (
        b'{"a":X,"\\u0061":X}'.replace(b"X", header(**entry("U8", (0,), (0, 0)))),
        0,
        ["a", "twice"],
    ),
    "tensor is a list": (b'{"a":[]}', 0, ["a", "a list"]),
    "tensor is null": (b'{"a":null}', 0, ["a", "null"]),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', 0, ["__metadata__"]),
    "metadata key twice": (b'{"__metadata__":{"k":"a","k":"b"}}', 0, ["__metadata__", "k"]),
    "metadata holds a number": (b'{"__metadata__":{"k":1}}', 0, ["__metadata__"]),
    "metadata is a list": (b'{"__metadata__":[]}', 0, ["__metadata__"]),
    "much metadata": (header(__metadata__={str(i): "" for i in range(2000)}), 0, ["__metadata__"]),
    "another format version": (
        header(__metadata__={"longcat_format_version": "2", "format": "pt"}),
        0,
        ['longcat_format_version is "2", expected "1": install'],
    ),
    "overlap": (header(a=entry(), b=entry(data_offsets=(8, 24))), 24, ["b", "inside", "a"]),
    "same bytes twice": (header(a=entry(), b=entry()), 16, ["inside"]),
    "empty tensor inside another": (
        header(a=entry(), b=entry(shape=(0,), data_offsets=(8, 8))),
        16,
        ["inside"],
    ),
    "gap": (header(a=entry(), b=entry(data_offsets=(20, 36))), 36, ["b", "20", "16"]),
    "gap at the start": (header(a=entry(data_offsets=(4, 20))), 20, ["begins at byte 4"]),
    "past the end": (header(a=entry()), 15, ["truncated", "download it again"]),
    "far past the end": (header(a=entry("U8", (HUGE - 9,), (0, HUGE - 9))), 16, ["truncated"]),
    "bytes left over": (header(a=entry()), 17, ["too long"]),
    "not JSON": (b"{]", 0, ["not valid JSON"]),
    "cut off": (header(a=entry())[:-1], 16, ["not valid JSON"]),
    "text after the object": (b"{} {}", 0, ["not valid JSON"]),
    "NUL after the object": (b"{}\0{", 0, ["NUL"]),
    "a list": (b"[]", 0, ["begins with"]),
    "empty": (b"", 0, ["begins with"]),
    "leading blank": (b" {}", 0, ["begins with"]),
    "byte order mark": (b"\xef\xbb\xbf{}", 0, ["begins with"]),
    "not UTF-8": (b'{"\xff":1}', 0, ["UTF-8"]),
    "lone surrogate": (b'{"\\ud800":1}', 0, ["not valid JSON"]),
    "deep": (b'{"a":' + b"[" * 100_000, 0, ["a list"]),
    "deep in metadata": (b'{"__metadata__":{"k":' + b'{"k":' * 100_000, 0, ["__metadata__"]),
    "name of a megabyte": (header(**{"x" * 2**20: 1}), 0, ["1048576 bytes"]),
    "name with control characters": (header(**{"a\n\x1b[31m\u2028\u202e\x85": 1}), 0, ["\\u000a", "\\u2028"]),
    "value of a megabyte": (header(a=entry("F" * 2**20)), 16, ["1048576 bytes"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, refused):
    text, data_bytes, tells = REFUSED[case]
    message = refused(parse, text, data_bytes)
    assert message.startswith("[safetensors] ")
    for part in tells:
        assert part in message


def test_size_limits(refused):
    tensors = {str(i): entry("U8", (0,), (0, 0)) for i in range(200_001)}
    assert "200000 tensors" in refused(parse, header(**tensors), 0, within_ms=10_000)
    assert "16777216" in refused(parse, b"{" + b" " * 2**24 + b"}", 0)

"""JSON: the same values and the same refusals as orjson's, and limits on its parts, which are counted beforehand."""

import json
import random

import orjson
import pytest
from longcat.server.http import json_text
from longcat.server.http.json_text import JsonError, check_parts, parse


def random_value(rng, depth=0):
    kind = rng.randrange(8 if depth < 5 else 5)
    if kind == 0:
        return rng.choice([None, True, False, 2**63, -(2**63), 2**70])
    if kind == 1:
        return rng.randrange(-(10**6), 10**6)
    if kind == 2:
        return rng.random() * 10 ** rng.randrange(-5, 20)
    if kind in (3, 4):
        return "".join(rng.choice('ab"\\/\n\té😀{}[]:, \x00') for _ in range(rng.choice([0, 1, 5, 300])))
    if kind == 5:
        return [rng.randrange(5000) for _ in range(rng.choice([1, 3, 2500]))]
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {rng.choice('abc"\\é'): random_value(rng, depth + 1) for _ in range(rng.randrange(5))}


def outcome(parse, data):
    try:
        return repr(parse(data))
    except (orjson.JSONDecodeError, JsonError):
        return "refused"


@pytest.mark.parametrize("seed", range(4))
def test_values_and_refusals_are_orjsons(seed):
    rng = random.Random(seed)
    num_refused = 0
    for _ in range(300):
        value = random_value(rng)
        data = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode())
        for num_changes in (0, 1, 1, 2):  # one after the other, so that damage adds up
            for _ in range(num_changes):
                at = rng.randrange(len(data) + 1)
                data[at : at + rng.randrange(3)] = bytes([rng.choice(b'"\\,:[]{}0-.ea\x00\xff ')])
            expected = outcome(orjson.loads, data)
            assert outcome(parse, data) == expected, bytes(data)
            check_parts(data)  # whatever it is, it is small
            num_refused += expected == "refused"
    assert 100 < num_refused < 1100


def parts(value, depth=1):
    """Values, fields and depth, counted one by one."""
    if isinstance(value, dict):
        inner = [parts(item, depth + 1) for item in value.values()]
        fields = max(len(value), 1)
    elif isinstance(value, list):
        inner = [parts(item, depth + 1) for item in value]
        fields = 1
    else:
        return 1, 0, depth - 1
    return (
        1 + sum(one[0] for one in inner),
        fields + sum(one[1] for one in inner),
        max([depth, *(one[2] for one in inner)]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_counted_exactly(seed, monkeypatch):
    rng = random.Random(seed)
    for _ in range(100):
        value = [random_value(rng), {'a\\"[]{},:': random_value(rng), "b": ["[{", '"', "\\"]}]
        data = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        counts = dict(zip(("MAX_VALUES", "MAX_FIELDS", "MAX_DEPTH"), parts(json.loads(data)), strict=True))
        for name, count in counts.items():
            with monkeypatch.context() as patch:
                patch.setattr(json_text, name, count)
                check_parts(data)
                patch.setattr(json_text, name, count - 1)
                with pytest.raises(JsonError, match="expected"):
                    check_parts(data)


@pytest.mark.parametrize("text", ["a", '"', "\\", 'a\\"', "\n"])
def test_the_length_of_a_text_is_that_of_its_writing(text, monkeypatch):
    written = json.dumps(text * 1000)
    data = f'["x", {written}, "y"]'.encode()
    monkeypatch.setattr(json_text, "MAX_TEXT_BYTES", len(written) - 2)
    check_parts(data)
    monkeypatch.setattr(json_text, "MAX_TEXT_BYTES", len(written) - 3)
    with pytest.raises(JsonError, match="a text in the body is too long"):
        check_parts(data)


BEYOND = {
    "a text": b'"' + b"a" * (json_text.MAX_TEXT_BYTES + 100_000) + b'"',
    "quotes": b'"' + b'\\"' * (json_text.MAX_TEXT_BYTES // 2 + 50_000) + b'"',
    "numbers": b"[" + b"1," * json_text.MAX_VALUES + b"1]",
    "fractions": b"[" + b".5e1," * json_text.MAX_VALUES + b"1]",
    "lists": b"[" + b"[]," * json_text.MAX_FIELDS + b"1]",
    "fields": b"{" + b'"a":1,' * json_text.MAX_FIELDS + b'"b":1}',
    "depth": b"[" * (json_text.MAX_DEPTH + 1) + b"]" * (json_text.MAX_DEPTH + 1),
    "brackets": b"[" * (8 << 20),
    "white space": b" " * (8 << 20),
}


@pytest.mark.parametrize("kind", BEYOND)
def test_what_is_too_large_ends_early(kind):
    with pytest.raises(JsonError, match="expected") as caught:
        check_parts(BEYOND[kind])
        parse(BEYOND[kind])
    assert str(caught.value).startswith("[request] ") and "\n" not in str(caught.value)


def test_what_is_just_small_enough_is_read():
    for data in (
        b"[" + b"1," * (json_text.MAX_VALUES - 2) + b"1]",
        b"[" * json_text.MAX_DEPTH + b"]" * json_text.MAX_DEPTH,
        b'"' + b"a" * json_text.MAX_TEXT_BYTES + b'"',
    ):
        check_parts(data)
        parse(data)


@pytest.mark.parametrize(
    ("data", "place"), [(b'{"a": 1,\n "b": x}', "line 2, column 7"), (b"\n\nx", "line 3, column 1")]
)
def test_mistakes_are_told_with_their_place(data, place):
    with pytest.raises(JsonError, match=place):
        parse(data)

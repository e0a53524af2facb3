"""Detokenisation: whole characters only, equal to the tokenizers library's own decoding."""

from pathlib import Path

import longcat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longcat.request.tokenizer import StreamDecoder, Tokenizer
from tokenizers import Tokenizer as LibraryTokenizer

TEXT = "héllo wörld — 你好, 🦙🦙 naïve 100%\n\ttabs"


TINY = Path(__file__).parents[2] / "examples" / "longcat-tiny"
LIBRARY = LibraryTokenizer.from_file(str(TINY / "tokenizer.json"))
OURS = Tokenizer(TINY)


@pytest.fixture
def tokenizer():
    return OURS


def test_round_trip(tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_stream_never_splits_a_character(tokenizer):
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push([token_id]) for token_id in tokenizer.encode(TEXT)]
    assert "".join(parts) + decoder.finish() == TEXT
    assert not any("\ufffd" in part for part in parts)
    assert "" in parts  # something was held back


def test_a_character_that_never_ends(tokenizer):
    ids = tokenizer.encode("🦙")
    assert len(ids) > 1
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(ids[:-1]) == ""
    assert decoder.finish() == "\ufffd"


def test_special_tokens(tokenizer):
    ids = tokenizer.encode("a</longcat_s><longcat_tool_call>b")
    assert 2 in ids
    assert tokenizer.decode(ids) == "a<longcat_tool_call>b"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a</longcat_s><longcat_tool_call>b"


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 2047), max_size=30), skip=st.booleans())
def test_decode_equals_the_library(ids, skip):
    assert OURS.decode(ids, skip) == LIBRARY.decode(ids, skip_special_tokens=skip)


def test_missing_and_broken_tokenizers(tmp_path):
    with pytest.raises(longcat.Error, match="missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(longcat.Error, match="not a tokenizer.json"):
        Tokenizer(tmp_path)

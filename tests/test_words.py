"""tests/words.py finds what it should, and leaves sound English alone."""

from pathlib import Path

import pytest
import words


@pytest.mark.parametrize("text", ["nobody waits", "a fallen guess", "the request loses its place", "so many bytes on"])
def test_forbidden(text):
    assert words.FORBIDDEN.search(text)


@pytest.mark.parametrize(
    "text", ["a step in flight", "so many that it fails", "a doorbell", "in place", "the draft tokens"]
)
def test_sound(text):
    assert not words.FORBIDDEN.search(text)


def test_comments_of_adjacent_lines_are_one_text():
    source = (
        "int n = 1'000;  // won't\n"
        + 'int a;  // one.\n        // two\nint b;  // three\ncall("not a // comment", 1);  // four\n'
    )
    comments = ["won't", "one.\ntwo", "three", "four"]
    assert [text for _, text in words.c_texts(source, False) if text] == comments
    assert sorted(text for _, text in words.c_texts(source, True) if text) == sorted([*comments, "not a // comment"])


def test_python_messages_are_read_on_request():
    source = '"""Doc."""\n# note\nx = f"found {1} here"\ny = "key"\n'
    assert [text for _, text in words.python_texts(source, False) if text] == ["note", "Doc."]
    assert [text for _, text in words.python_texts(source, True) if text] == ["note", "Doc.", "found ", " here"]


def test_markdown_without_code():
    source = "# Title\nOne\ntwo.\n\n```\nnobody\n```\n- item\n| a | b c |\n"
    assert [text.strip() for _, text in words.markdown_texts(source) if text.strip()] == [
        "One\ntwo.",
        "- item",
        "a",
        "b c",
    ]


def test_sentences():
    assert words.sentences("One is here. Two, e.g. `a. b`, is\nthere.\n\n- three") == [
        "One is here.",
        "Two, e.g. `code`, is there.",
        "- three",
    ]
    assert words.is_long("the word " * 13)
    assert not words.is_long("the word " * 12 + "[a, b, c] 1 + 2 = 3") and not words.is_long("name " * 30)


def test_files_of_every_kind_are_read(tmp_path: Path):
    for name in ("a.h", "a.py", "a.md", "CMakeLists.txt", "a.sh"):
        comment = {".h": "// ", ".md": ""}.get(Path(name).suffix, "# ")
        (tmp_path / name).write_text(f"{comment}nobody here\n")
        assert [text.strip() for _, text in words.texts(tmp_path / name, True)] == ["nobody here"]

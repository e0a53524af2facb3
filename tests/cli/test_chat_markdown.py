"""Markdown in a terminal: what is shown does not depend on the parts in which it arrives."""

import pytest
from longcat.cli.chat.markdown import BOLD, CODE, HEAD, ITALIC, RESET, MarkdownStream

TEXT = """# Title

Some *it* and **bold** `co*de`, 2 * 3 = 6 and snake_case.
- one
  * two
1. first
> quoted
---
| a | price |
|---|:--|
| **x** | 1 |
| longer | `2` |
after
```python
def f(*a):
    return "`"
```
**unclosed
last"""
SHOWN = """Title

Some it and bold co*de, 2 * 3 = 6 and snake_case.
\u2022 one
  \u2022 two
1. first
\u2502 quoted
\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500
a       price
x       1
longer  2
after
```python
def f(*a):
    return "`"
```
unclosed
last"""


def shown(parts, color=False, width=len) -> str:
    written: list[str] = []
    stream = MarkdownStream(written.append, width, color)
    for part in parts:
        stream.push(part)
    stream.finish()
    return "".join(written)


def test_marks_become_styles_and_tables_columns():
    assert shown([TEXT]) == SHOWN
    styled = shown([TEXT], color=True)
    assert f"{HEAD}Title" in styled and f"{ITALIC}it{RESET}" in styled and f"{BOLD}bold{RESET}" in styled
    assert f"{CODE}co*de{RESET}" in styled and f"{BOLD}unclosed{RESET}\nlast" in styled


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_of_any_size_show_the_same(size):
    for color in (True, False):
        whole = shown([TEXT], color)
        assert shown([TEXT[i : i + size] for i in range(0, len(TEXT), size)], color) == whole


def test_text_is_shown_as_it_arrives():
    written: list[str] = []
    stream = MarkdownStream(written.append, len, False)
    for word in ("Once ", "upon ", "a time"):
        before = len("".join(written))
        stream.push(word)
        assert "".join(written)[before:] == word


def test_columns_follow_the_width_of_chinese():
    wide = lambda text: sum(2 if ord(c) > 0x2E80 else 1 for c in text)  # noqa: E731
    assert shown(["|a|b|\n|\u4e2d\u6587|x|\n"], width=wide) == "a     b\n\u4e2d\u6587  x\n"


def test_a_model_cannot_control_the_terminal():
    attack = "a\x1b]0;title\x07b\x1b[2Jc\r\x9bd"
    assert shown([attack]) == "a]0;titleb[2Jcd"
    assert shown(["```\n" + attack + "\n```\n"]).split("\n")[1] == "a]0;titleb[2Jcd"

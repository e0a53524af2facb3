"""Markdown to HTML, in workers: CommonMark with tables, highlighted code, and formulas.

The text is a model's or a user's. HTML in it is text. Links lead to web pages and mailboxes alone, and images become
links.
"""

from __future__ import annotations

import functools
import re

from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from longcat.server.api.playground.formulas import add_formulas
from longcat.support.json_types import JsonObject
from longcat.support.worker import Work

_MAX_HIGHLIGHTED = 32 << 10  # characters of a code block; longer ones have no colours
_MAX_LANGUAGE = 32
_MAX_LEXERS = 16  # that are kept
_LINK = re.compile(r"(?:https?://|mailto:)\S", re.IGNORECASE)


def prepare(setup: JsonObject) -> Work:
    """The work of a worker. A job is markdown, the answer is HTML, both as UTF-8."""
    markdown = parser()

    def work(job: bytes | bytearray) -> bytes:
        return to_html(markdown, job.decode()).encode()

    to_html(markdown, "```python\n0\n```\n| a |\n| - |\n| $b$ |\n")  # which imports what most texts need
    return work


def parser() -> MarkdownIt:
    """Returns a parser of markdown without HTML and images."""
    markdown = MarkdownIt("commonmark", {"html": False, "highlight": _highlight})
    markdown.enable(["table", "strikethrough"]).disable("image")
    markdown.validateLink = _is_safe  # type: ignore[method-assign]
    add_formulas(markdown)
    return markdown


def to_html(markdown: MarkdownIt, text: str) -> str:
    """Returns the HTML of a text."""
    tokens = markdown.parse(text)
    for token in tokens:
        if align := token.attrs.pop("style", None):  # of a table's cell; the page allows no style in HTML
            token.attrs["class"] = str(align).removeprefix("text-align:")
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def _is_safe(url: str) -> bool:
    return _LINK.match(url) is not None


def _highlight(code: str, language: str, _: str) -> str:
    """Returns code with classes for its parts; "": it stays plain."""
    if not language or len(language) > _MAX_LANGUAGE or len(code) > _MAX_HIGHLIGHTED:
        return ""
    lexer = _lexer(language)
    return "" if lexer is None else str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


@functools.lru_cache(_MAX_LEXERS)
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return None

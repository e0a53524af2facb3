"""Formulas in markdown, as MathML: $...$ and \\(...\\) within a line, $$...$$ and \\[...\\] also as blocks.

latex2mathml writes the text of a formula unescaped, and passes on attributes such as `href` and `style`. So its tree is
written here: by a list of elements and attributes, and with everything escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

_MAX_CHARS, _MAX_LINES = 4000, 50  # of a formula; longer ones are text
# Opening and closing mark, and whether the formula is displayed on a line of its own.
_FORMS = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False), ("$", "$", False))
_ELEMENTS = frozenset(
    "math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd "
    "mtext mtr munder munderover".split()
)
_ATTRIBUTES = frozenset(
    "accent columnalign columnlines columnspacing depth display displaystyle fence form height largeop linethickness "
    "lspace mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace scriptlevel separator "
    "stretchy symmetric voffset width xmlns".split()
)
_VALUE = re.compile(r"[\w .:/%+-]{0,64}")


def add_formulas(markdown: MarkdownIt) -> None:
    """Lets a parser read formulas."""
    markdown.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    markdown.inline.ruler.before("escape", "formula", _inline)
    markdown.add_render_rule("formula", _render)


def mathml(latex: str, is_block: bool) -> str:
    """Returns a formula as MathML, or its escaped source where it is no LaTeX that we know."""
    try:
        return _written(Converter(display="block" if is_block else "inline").convert_to_element(latex))
    except MemoryError:
        raise
    except Exception:  # latex2mathml raises errors of its own, and IndexError, RecursionError and others
        return f'<code class="formula">{html.escape(latex)}</code>'


def _written(element: Element) -> str:
    attributes = "".join(
        f' {name}="{html.escape(value)}"'
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _VALUE.fullmatch(value)
    )
    # latex2mathml has symbols as entities in its texts.
    inner = html.escape(html.unescape(element.text or "")) + "".join(map(_written, element))
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>" if element.tag in _ELEMENTS else inner


def _inline(state: StateInline, silent: bool) -> bool:
    src, begin = state.src, state.pos
    form = next((form for form in _FORMS if src.startswith(form[0], begin)), None)
    if form is None:
        return False
    opening, closing, is_block = form
    start = begin + len(opening)
    end = src.find(closing, start, min(state.posMax, start + _MAX_CHARS))
    if end <= start:
        return False
    latex = src[start:end]
    # As pandoc does, so that amounts in dollars are text.
    if opening == "$" and (latex != latex.strip() or src[end + 1 : end + 2].isdigit()):
        return False
    if not silent:
        _add(state, latex, is_block)
    state.pos = end + len(closing)
    return True


def _block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    begin = state.bMarks[start_line] + state.tShift[start_line]
    form = next((form for form in _FORMS[:2] if state.src.startswith(form[0], begin)), None)
    if form is None or state.is_code_block(start_line):
        return False
    opening, closing, _ = form
    lines: list[str] = []
    start, num_chars = begin + len(opening), 0
    for line in range(start_line, min(end_line, start_line + _MAX_LINES)):
        if line > start_line:
            start = state.bMarks[line] + state.tShift[line]
            if state.sCount[line] < state.blkIndent:
                return False
        text = state.src[start : state.eMarks[line]].rstrip()
        num_chars += len(text)
        if num_chars > _MAX_CHARS:
            return False
        if text.endswith(closing):
            lines.append(text.removesuffix(closing))
            if not silent:
                _add(state, "\n".join(lines), True)
            state.line = line + 1
            return True
        lines.append(text)
    return False


def _add(state: StateInline | StateBlock, latex: str, is_block: bool) -> None:
    token = state.push("formula", "", 0)
    token.content, token.block = latex, is_block


def _render(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return mathml(tokens[index].content.strip(), tokens[index].block)

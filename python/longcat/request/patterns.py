"""Translates the regular expressions of JSON schemas to Rust's syntax, for matches of a whole text.

The dialects of JavaScript, Python and Rust differ in a few places. There the result allows only texts that all three
allow. Syntax that has no translation is refused by name.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from longcat.support.json_types import JsonObject

if TYPE_CHECKING:
    from llguidance import LLMatcher

_ANY = "(?s:.*)"
_LINE = r"[^\n\r\x{2028}\x{2029}]"  # what "." is in JavaScript, the strictest of the three
_SHORTHANDS = {"d": "0-9", "w": "0-9A-Za-z_"}  # ASCII, as JavaScript has them
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})\??")
_GROUP = re.compile(r"\((?:\?:|\?P?<[A-Za-z_]\w*>)?")
_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,6}\}|[pP]\{[^}]*\}|.)", re.DOTALL)
_MAX_DEPTH = 50

_MONTHS = r"(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DAY = rf"(?:{_MONTHS}|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_LEAP = r"(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:[1-9][0-9]{{3}}-{_DAY}|{_LEAP})"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_GROUP16 = "[0-9A-Fa-f]{1,4}"
_FEW = f"{_GROUP16}(?::{_GROUP16}){{0,2}}"
_URI_HOST = rf"[a-z][a-z0-9+.-]{{0,15}}:\x2f\x2f{_HOST}(?::[1-9][0-9]{{0,3}})?"
_URI = _URI_HOST + r"(?:\x2f[A-Za-z0-9._~-]*)*(?:\?[A-Za-z0-9._~=&-]*)?(?:#[A-Za-z0-9._~-]*)?"
_EMAIL = rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_HOST}"
_TIMES = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DATES = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_POINTER = "(?:\x5cx2f(?:[^\x5cx00-\x5cx20~\x5cx2f]|~[01])*)*"
# Each allows nothing that the format's standard forbids; of the wider formats a part.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_DATES}(?:{_TIMES})?|{_TIMES}|[0-9]+W)",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": f"(?:{_GROUP16}(?::{_GROUP16}){{7}}|{_FEW}::{_FEW}|::(?:{_GROUP16})?)",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": _URI,
    "iri-reference": _URI,
    "uri-template": _URI,
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
}
UNENFORCED_FORMATS = ("regex",)  # all other names of formats are notes


class PatternError(ValueError):
    """The expression uses syntax that cannot be enforced. The message names it."""


@functools.lru_cache(256)
def whole(pattern: str) -> str:
    """Returns an expression that matches a whole text if `pattern` is found in the text.

    The result has no anchors, no "/" and no control characters, so that it fits between the slashes of a grammar.

    Raises:
        PatternError: the pattern has look-around, back-references, word boundaries or inner anchors, or is malformed.
    """
    reader = _Reader(pattern)
    branches = reader.alternatives(0)
    if reader.at < len(pattern):
        raise PatternError('a ")" without its "("')
    return _write(branches, True, True)


# A branch is a list of items, an item (text or nested branches, quantifier); "^" and "$" are items of their own.
_Item = tuple["str | list[list[_Item]]", str]


class _Reader:
    def __init__(self, pattern: str):
        self.pattern = pattern
        self.at = 0

    def alternatives(self, depth: int) -> list[list[_Item]]:
        if depth > _MAX_DEPTH:
            raise PatternError(f"groups more than {_MAX_DEPTH} deep")
        branches: list[list[_Item]] = [[]]
        while self.at < len(self.pattern) and self.pattern[self.at] != ")":
            if self.pattern[self.at] == "|":
                self.at += 1
                branches.append([])
            else:
                branches[-1].append(self._item(depth))
        return branches

    def _item(self, depth: int) -> _Item:
        char = self.pattern[self.at]
        atom: str | list[list[_Item]]
        if char in "^$":
            self.at += 1
            atom = char
        elif char == "(":
            atom = self._group(depth)
        elif char == "[":
            atom = self._class()
        elif char == "\\":
            atom = self._escape(in_class=False)
        elif char in "*+?" or _QUANTIFIER.match(self.pattern, self.at):
            raise PatternError("a repetition of nothing")
        else:
            self.at += 1
            atom = _LINE if char == "." else _literal(char)
        match = _QUANTIFIER.match(self.pattern, self.at)
        if match is None:
            return atom, ""
        self.at = match.end()
        if isinstance(atom, str) and atom in ("^", "$"):
            raise PatternError("a repeated anchor")
        if self.pattern[self.at : self.at + 1] in ("+", "*", "?"):
            raise PatternError("a repetition of a repetition")
        return atom, match[0] if match[0] == "?" else match[0].removesuffix("?")

    def _group(self, depth: int) -> list[list[_Item]]:
        match = _GROUP.match(self.pattern, self.at)
        assert match is not None
        self.at = match.end()
        if match[0] == "(" and self.pattern.startswith("?", self.at):
            kind = self.pattern[self.at : self.at + 3]
            around = kind[1:2] in ("=", "!") or kind[1:3] in ("<=", "<!")
            raise PatternError("look-around" if around else f'a group that begins with "({kind}"')
        branches = self.alternatives(depth + 1)
        if self.at >= len(self.pattern):
            raise PatternError('an unclosed group: a "(" without its ")"')
        self.at += 1
        return branches

    def _class(self) -> str:
        self.at += 1
        negated = self.pattern.startswith("^", self.at)
        self.at += negated
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] != "]":
            char = self.pattern[self.at]
            if char == "\\":
                parts.append(self._escape(in_class=True, negated=negated))
            else:
                self.at += 1
                parts.append("\\" + char if char in "[&~" else _literal(char) if char != "-" else char)
        if self.at >= len(self.pattern):
            raise PatternError('an unclosed class: a "[" without its "]"')
        if not parts:
            raise PatternError("an empty class")
        self.at += 1
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _escape(self, in_class: bool, negated: bool = False) -> str:
        match = _ESCAPE.match(self.pattern, self.at)
        if match is None:
            raise PatternError("a backslash at its end")
        self.at = match.end()
        char = match[0][1]
        if char in "xu" and len(match[0]) > 2:
            code = int(match[0][2:].strip("{}"), 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise PatternError("half of a surrogate pair")
            return f"\\x{{{code:x}}}"
        if char in "pP" and len(match[0]) > 2:
            return match[0]
        if char in _SHORTHANDS:
            inner = f"\\{char}" if negated else _SHORTHANDS[char]
            return inner if in_class else f"[{inner}]"
        if char == "b" and in_class:
            return r"\x08"
        if char == "0" and not self.pattern[self.at : self.at + 1].isdigit():
            return r"\x00"
        if char.isdigit() or char == "k":
            raise PatternError("a back-reference")
        if char in "bBAzZG":
            raise PatternError(f"a boundary (\\{char})")
        if char in "DWsSnrtfv":
            return f"\\{char}"
        if char.isalpha():
            raise PatternError(f"the escape \\{char}")
        return "\\-" if char == "-" else _literal(char)


def _literal(char: str) -> str:
    if char in "\\.+*?()|[]{}^$#&-~":
        return "\\" + char
    return f"\\x{{{ord(char):x}}}" if char == "/" or not char.isprintable() else char


def _write(branches: list[list[_Item]], left: bool, right: bool) -> str:
    """Writes the alternatives as one expression.

    Args:
        left, right: whether the alternatives begin or end where the whole text does, so that anchors may stand there.
    """
    return "(?:" + "|".join(_write_branch(branch, left, right) for branch in branches) + ")"


def _write_branch(items: list[_Item], left: bool, right: bool) -> str:
    text, end = "", ""
    while left and items and items[0][0] == "^":
        items, left, text = items[1:], False, text or "(?:)"
        if not items or items[0][0] != "^":
            break
        left = True
    starts_free = left and not (items and _has_anchor(items[0]))
    right_anchored = False
    while right and items and items[-1][0] == "$":
        items, right_anchored = items[:-1], True
    right = right and not right_anchored
    ends_free = right and not (items and _has_anchor(items[-1]))
    if starts_free:
        text = _ANY
    if ends_free:
        end = _ANY
    for i, (atom, quantifier) in enumerate(items):
        if isinstance(atom, str):
            if atom in ("^", "$"):
                raise PatternError("an anchor inside")
            text += atom + quantifier
            continue
        at_left = left and not starts_free and i == 0
        at_right = right and not ends_free and i == len(items) - 1
        if quantifier and (at_left or at_right):
            raise PatternError("an anchor in a repeated group")
        text += _write(atom, at_left, at_right) + quantifier
    return text + end


def _has_anchor(item: _Item) -> bool:
    atom = item[0]
    return isinstance(atom, list) and any(one[0] in ("^", "$") or _has_anchor(one) for branch in atom for one in branch)


def without(words: list[str]) -> str:
    """Returns an expression for all texts without any of `words`. A word is "<" and characters other than "<"."""

    def after(tails: list[str]) -> str:
        """Returns an expression for the text behind "<". `tails` are the ends of words, which may not follow."""
        following = sorted({tail[0] for tail in tails})
        parts = [f"[^<{''.join(map(_literal, following))}][^<]*"]
        for char in following:
            rest = [tail[1:] for tail in tails if tail[0] == char]
            if "" not in rest:
                parts.append(_literal(char) + after(rest))
        return f"(?:{'|'.join(parts)})?"

    return f"[^<]*(?:<{after([word[1:] for word in words])})*"


@functools.lru_cache(256)
def _matcher(regex: str) -> LLMatcher | None:
    """Returns a matcher of bytes; None where llguidance is missing or refuses the expression."""
    try:
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    except ImportError:
        return None
    limits = LLParserLimits(max_lexer_states=8_000, initial_lexer_fuel=200_000, step_lexer_fuel=50_000)
    matcher = LLMatcher(
        LLTokenizer("byte"), LLMatcher.grammar_from_lark(f"start: T\nT: /{regex}/"), log_level=0, limits=limits
    )
    return None if matcher.is_error() else matcher


def matches(regex: str, text: str) -> bool:
    """Returns whether `regex` (from `whole` or FORMATS) matches the whole text, in time linear in its length.

    Returns True without llguidance, which does the matching.
    """
    matcher = _matcher(regex)
    if matcher is None:
        return True
    matcher, data = matcher.deep_copy(), list(text.encode())
    if not data:
        return bool(matcher.is_accepting())
    is_taken = matcher.validate_tokens(data) == len(data) and matcher.consume_tokens(data)
    return bool(is_taken and matcher.is_accepting())


@functools.lru_cache(256)
def is_empty(patterns: tuple[str, ...], least: int, most: int | None) -> bool:
    """Returns whether no text of these lengths matches all `patterns`. Also returns False where it cannot tell."""
    try:
        from llguidance import LLMatcher, LLTokenizer
    except ImportError:
        return False
    schema: JsonObject = {
        "type": "string",
        "minLength": least,
        "allOf": [{"pattern": f"^{one}$"} for one in patterns],
    }
    if most is not None:
        schema["maxLength"] = most
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(schema), log_level=0)
    return matcher.is_error() and "nsatisfiable" in matcher.get_error()

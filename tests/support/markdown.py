"""A page of Markdown as the tests of the documents read it: headings, code, links, and sentences."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
# A stop ends a sentence before white space, unless it belongs to one of these.
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)[.!?](?=\s|$)")


@dataclass(frozen=True)
class Page:
    """One page, by its text."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls(path, path.read_text(encoding="utf-8"))

    def blocks(self, *languages: str) -> list[str]:
        """The code in fences, of these languages or of all."""
        return [code for language, code in _FENCE.findall(self.text) if not languages or language in languages]

    @property
    def without_blocks(self) -> str:
        return _FENCE.sub("", self.text)

    def headings(self) -> list[str]:
        return re.findall(r"^#+ +(.+)$", self.without_blocks, re.MULTILINE)

    def anchors(self) -> set[str]:
        """What links to a heading end in, as GitHub makes it."""
        return {re.sub(r"[^\w\- ]", "", _CODE.sub(r"\1", head).lower()).replace(" ", "-") for head in self.headings()}

    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return _LINK.findall(self.without_blocks)

    def inline_code(self) -> list[str]:
        return _CODE.findall(self.without_blocks)

    def tables(self) -> list[str]:
        """Lines of tables."""
        return [line for line in self.without_blocks.splitlines() if line.startswith("|")]

    def paragraphs(self) -> list[list[str]]:
        """Lines of text by paragraph; an item of a list is one. Without headings, tables, code and pictures."""
        found: list[list[str]] = [[]]
        for line in self.without_blocks.splitlines():
            starts_item = re.match(r" *([-*]|\d+\.) ", line)
            is_text = bool(line.strip()) and not re.match(r"#|\||!\[|    |<!--", line)
            if starts_item or not is_text:
                found.append([])
            if is_text or starts_item:
                found[-1].append(line)
        return [lines for lines in found if lines]

    def sentences(self) -> list[str]:
        """Sentences of the paragraphs; a piece of code, or a link, counts as the words it shows."""
        found = []
        for lines in self.paragraphs():
            text = re.sub(r"^ *([-*]|\d+\.) ", "", " ".join(line.strip() for line in lines))
            text = re.sub(r"\[([^\]]*)\]\([^)\s]+\)", r"\1", _CODE.sub("code", text)).replace("**", "")
            found += [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]
        return found

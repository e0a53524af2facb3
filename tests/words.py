"""Checks the English of comments, docstrings, messages and docs; `make lint` runs it.

It counts, per top folder, words that docs/terms.md replaces and sentences over 25 words. A count above the folder's
budget fails. `python tests/words.py FOLDER` lists the places.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 25  # words in a sentence

# Folder -> forbidden words, and long sentences, at most. The one in python is a shell script in a string, so shorten a
# new sentence in place of raising a number.
BUDGET = {
    "cpp": (0, 0),
    "cuda": (0, 0),
    "python": (0, 1),
    "docs": (0, 0),
    "tests": (0, 0),
    "bench": (0, 0),
}

# Phrases that are wrong in every place. Words that also have a sound use (place, answer, lane) are left to the reader.
FORBIDDEN = re.compile(
    r"""\b(?:
    guess(?:es)? | wish(?:es|ed)? | meetings? | strangers? | doors?
    | (?<!in\ )(?<!in-)flights?
    | (?:gives?|gave|loses?|lost)\ (?:its|their|a)\ place
    | whoever | nobody | whom
    | (?:who|that)\ leads? | (?:those|ranks?)\ (?:who|that)\ follow
    | who\ (?:asks|asked|waits|waited|calls|called|reads|writes|has|is|comes|came|owns|holds)
    | what\ (?:comes|came)
    | so\ many\ (?!that\b)\w+\b(?!.{0,60}\bthat\b)
    | (?:is|are|was|were)\ not\ possible | not\ to\ be\ had | (?:is|be|was|were)\ had
    | has\ no\ meaning\ here
    | as\ (?:it|they)\ pleases?
    | recordings?\ of\ (?:a|the|its|each)\ steps?
    | lesser\ ones? | last\ words | brings?\ nothing | anew | thereby | thereof | wherein
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)

# Strings of tests and benchmarks are data, so their comments and docstrings alone are read there.
WITH_MESSAGES = {"cpp", "cuda", "python"}
EXEMPT = {"docs/terms.md", "tests/words.py", "tests/test_words.py"}  # they quote the words
C_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
C_TOKEN = re.compile(
    r'\b\d[\w\']*|//[^\n]*|/\*.*?\*/|R"\((?:.*?)\)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)

Text = tuple[int, str]  # line, paragraph


def c_texts(source: str, messages: bool) -> Iterator[Text]:
    """Comments, those of adjacent lines joined, and string literals."""
    comment: list[str] = []
    first, last, column = 0, -1, 0
    for match in C_TOKEN.finditer(source):
        token = match.group()
        line = source.count("\n", 0, match.start()) + 1
        start = match.start() - (source.rfind("\n", 0, match.start()) + 1)
        if token.startswith("//"):
            alone = not source[match.start() - start : match.start()].strip()
            if not (alone and line == last + 1 and start == column):
                yield first, "\n".join(comment)
                comment, first = [], line
            comment.append(token.lstrip("/").removeprefix(" "))
            last, column = line, start
        elif token.startswith("/*"):
            yield line, token.strip("/*")
        elif messages and token.startswith(('"', "R")) and " " in token:
            yield line, token.strip('R"()').replace("\\n", "\n")
    yield first, "\n".join(comment)


def hash_texts(source: str) -> Iterator[Text]:
    """Comments of CMake, shell and make."""
    comment: list[str] = []
    first = 0
    for number, line in enumerate(source.split("\n"), 1):
        if match := re.match(r"\s*#(?!!)\s?(.*)", line):
            first = first if comment else number
            comment.append(match.group(1))
        elif comment:
            yield first, "\n".join(comment)
            comment = []
    yield first, "\n".join(comment)


def python_texts(source: str, messages: bool) -> Iterator[Text]:
    """Comments, docstrings, and with `messages` all strings that read as text."""
    comment: list[str] = []
    first, last, column = 0, -1, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            if not (alone and token.start == (last + 1, column)):
                yield first, "\n".join(comment)
                comment, first = [], token.start[0]
            comment.append(token.string.lstrip("#:").removeprefix(" "))
            last, column = token.start
    yield first, "\n".join(comment)
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings or (messages and " " in node.value):
                yield node.lineno, node.value


def markdown_texts(source: str) -> Iterator[Text]:
    """Paragraphs, list items and table cells, without code and headings."""
    plain = re.sub(
        r"^```.*?^```|^#[^\n]*", lambda m: "\n" * m.group().count("\n"), source, flags=re.DOTALL | re.MULTILINE
    )
    line = 1
    for block in re.split(r"\n(?=\s*\n|\s*(?:[-*]|\d+\.) |\s*\|)", plain):
        cells = block.strip().strip("|").split("|") if block.lstrip().startswith("|") else [block]
        yield from ((line + block[: len(block) - len(block.lstrip())].count("\n"), cell) for cell in cells)
        line += block.count("\n") + 1


def texts(path: Path, messages: bool) -> Iterator[Text]:
    source = path.read_text(encoding="utf-8")
    if path.suffix in C_SUFFIXES:
        found = c_texts(source, messages)
    elif path.suffix == ".py":
        found = python_texts(source, messages)
    elif path.suffix == ".md":
        found = markdown_texts(source)
    else:
        found = hash_texts(source)
    return ((line, text) for line, text in found if text.strip())


def sentences(text: str) -> list[str]:
    """The sentences of a text: paragraphs, list items and lines of arguments begin new ones."""
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\w[\w, /`]*: ))", re.sub(r"`[^`]*`", "`code`", text)):
        flat = " ".join(paragraph.split())
        found += [
            part for part in re.split(r"(?<=[.!?])[)\"']?\s+(?=[A-Z`\[(\"'a-z])(?<!e\.g\. )(?<!i\.e\. )", flat) if part
        ]
    return found


def is_long(sentence: str) -> bool:
    """Whether it has over 25 words. Numbers and shapes in brackets do not count; lists of names are no sentences."""
    plain = re.sub(r"\[[^\]]*\]", " ", sentence)
    words = [word for word in plain.split() if re.search(r"[A-Za-z]{2}|^[aAI]$", word)]
    return len(words) > LONGEST and any(word.lower() in ("a", "the", "of", "is", "are", "to", "in") for word in words)


def files() -> Iterator[tuple[str, Path]]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in names:
        path = Path(name)
        top = path.parts[0] if len(path.parts) > 1 else "docs" if path.suffix == ".md" else ""
        known = path.suffix in C_SUFFIXES | {".py", ".md", ".cmake", ".sh"} or path.name == "CMakeLists.txt"
        if top in BUDGET and known and name not in EXEMPT:
            yield top, path


def main() -> int:
    counts = {top: [0, 0, 0] for top in BUDGET}  # forbidden words, long sentences, sentences
    listed = sys.argv[1:]
    for top, path in files():
        for line, text in texts(ROOT / path, top in WITH_MESSAGES):
            shown = any(str(path).startswith(prefix) for prefix in listed)
            flat = " ".join(text.split())
            for match in FORBIDDEN.finditer(flat):
                counts[top][0] += 1
                if shown:
                    print(f"{path}:{line}: {match.group()!r} in: {flat[max(0, match.start() - 40) : match.end() + 40]}")
            for sentence in sentences(text):
                counts[top][2] += 1
                if is_long(sentence):
                    counts[top][1] += 1
                    if shown:
                        print(f"{path}:{line}: long: {sentence}")
    failed = False
    for top, (words, long, total) in counts.items():
        over = words > BUDGET[top][0] or long > BUDGET[top][1]
        failed |= over
        share = 100 * long / max(1, total)
        print(
            f"{top}: {words} forbidden words (budget {BUDGET[top][0]}), "
            f"{long} long sentences (budget {BUDGET[top][1]}; {share:.1f} % of {total}){': OVER' if over else ''}"
        )
    if failed:
        print("[words] over budget: `python tests/words.py FOLDER` lists the places, docs/terms.md the words to use")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

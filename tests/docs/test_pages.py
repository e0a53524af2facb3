"""The links, files, make targets and flags of the pages exist. Their lines, paragraphs and sentences are short."""

import re
import shlex
import unicodedata

import pytest
from longcat.cli import COMMANDS, make_parser

from support.documents import PAGES, README_ZH, ROOT, each_page
from support.markdown import Page

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FOLDERS = ("cpp/", "cuda/", "python/", "tests/", "bench/", "docs/", "examples/", ".ci/")
PACKAGES = tuple(f"{path.name}/" for path in (ROOT / "python" / "longcat").iterdir() if path.is_dir())
MADE = ("bench/results",)  # folders that programs make
# Pages whose words are not held to a length: they are generated from the code.
FREE = ("reference/engine.md", "reference/sampling.md")
# Files that other changes bring.
EXPECTED = {
    "docs/make_reference.py",
    "docs/reference/engine.md",
    "docs/terms.md",
    "python/longcat/engine/config.py",
    "python/longcat/engine/request_table.py",
    "tests/engine/test_config.py",
    "tests/words.py",
}


def exists(path: str) -> bool:
    """Whether a path of the repository, which may hold `*`, is there."""
    return path.rstrip("/") in EXPECTED or any(True for _ in ROOT.glob(path.rstrip("/")))


@each_page
def test_links(page):
    for target in page.links():
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.path.parent / path).resolve() if path else page.path
        name = str(found.relative_to(ROOT))
        assert found.exists() or name in EXPECTED, f"{target}: there is no {name}"
        if anchor and name not in EXPECTED:
            assert anchor in Page.read(found).anchors(), f"{target}: {name} has no heading of this name"


@each_page
def test_files_in_code_exist(page):
    """`cpp/model/model.cpp` is one of the repository, `chat/template.py` one of the package."""
    for code in page.inline_code():
        if not re.fullmatch(r"[\w.*/-]+", code) or "/" not in code.rstrip("/") or code.startswith(MADE):
            continue
        if code.startswith(FOLDERS):
            # bench/ and chat/ are folders of the package, too.
            assert exists(code) or exists(f"python/longcat/{code}") or (page.path.parent / code).exists(), code
        elif code.startswith(PACKAGES):
            inside = [f"python/longcat/{code}", f"python/longcat/server/{code}", f"cuda/{code}", f"cpp/{code}"]
            assert any(exists(path) for path in inside), code


def make_commands(page: Page) -> list[str]:
    lines = [line.split("#")[0] for block in page.blocks("sh") for line in block.splitlines()]
    return [text.strip() for text in [*page.inline_code(), *lines] if text.strip().startswith("make ")]


@each_page
def test_make_targets(page):
    targets = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *\??=", MAKEFILE, re.MULTILINE))
    for command in make_commands(page):
        for word in shlex.split(command)[1:]:
            name, is_set, _ = word.partition("=")
            assert name in (variables if is_set else targets), command


def longcat_commands(page: Page) -> list[list[str]]:
    """Arguments of `longcat`, in fences and in the text, also under a launcher."""
    lines = [line for block in page.blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for text in [*page.inline_code(), *lines]:
        if match := re.search(r"(?:^|[\s|])longcat ([a-z][a-z-]* .*|[a-z][a-z-]*$)", text):
            found.append(shlex.split(match[1], comments=True))
    return found


def flags_of(command: str, rest: list[str]) -> set[str]:
    _, parser = make_parser([command]).chosen([command, *rest])
    return set(parser._option_string_actions)


@each_page
def test_commands_and_flags(page):
    for command, *rest in longcat_commands(page):
        assert command in COMMANDS, command
        for word in rest:
            flag = word.partition("=")[0]
            if re.match(r"--?[a-z]", flag):
                assert flag.replace("_", "-") in flags_of(command, rest), f"longcat {command} has no {flag}"


def test_the_checks_see_what_is_wrong(tmp_path):
    path = ROOT / "docs" / "x.md"
    wrong = [
        (test_links, "[a](nowhere.md)"),
        (test_links, "[a](serving.md#nowhere)"),
        (test_files_in_code_exist, "`cpp/model/nowhere.cpp`"),
        (test_files_in_code_exist, "`chat/nowhere.py`"),
        (test_make_targets, "`make nothing`"),
        (test_make_targets, "```sh\nmake test NOTHING=1\n```\n"),
        (test_commands_and_flags, "`longcat serve PATH --nothing`"),
        (test_commands_and_flags, "```sh\nmpirun -n 2 longcat bench latency PATH --num-prompts 3\n```\n"),
        (test_lines_and_paragraphs_are_short, "word " * 30),
        (test_lines_and_paragraphs_are_short, "word\n" * 7),
    ]
    for test, text in wrong:
        with pytest.raises(AssertionError):
            test(Page(path, text))


HELD = [page for page in PAGES if not str(page.path).endswith(FREE)]


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


@pytest.mark.parametrize("page", HELD, ids=lambda page: str(page.path.relative_to(ROOT)))
def test_lines_and_paragraphs_are_short(page):
    for line in page.without_blocks.splitlines():
        assert line.startswith("|") or columns(line) <= 120, line
    for paragraph in page.paragraphs():
        assert len(paragraph) <= 6, paragraph[0]


def test_every_page_is_in_the_index():
    [index] = [page for page in PAGES if page.path.name == "index.md"]
    listed = {str((index.path.parent / link).resolve().relative_to(ROOT)) for link in index.links()}
    pages = {str(page.path.relative_to(ROOT)) for page in PAGES} - {"docs/index.md", "README.zh-CN.md"}
    assert pages <= listed, pages - listed


def test_sentences_are_short():
    """Fewer than 3 % have more than 25 words. Chinese has no spaces, so that page is not counted."""
    sentences = [text for page in HELD if page != README_ZH for text in page.sentences()]
    long = [text for text in sentences if len(text.split()) > 25]
    assert len(sentences) > 500 and len(long) < 0.03 * len(sentences), "\n".join(long)

"""The pages of the project, for the tests of the documents."""

from pathlib import Path

import pytest

from support.markdown import Page

ROOT = Path(__file__).resolve().parents[2]
README = Page.read(ROOT / "README.md")
README_ZH = Page.read(ROOT / "README.zh-CN.md")
CONTRIBUTING = Page.read(ROOT / "CONTRIBUTING.md")
PAGES = [
    *(Page.read(path) for path in sorted(ROOT.glob("*.md"))),
    *(Page.read(path) for path in sorted(ROOT.glob("docs/**/*.md"))),
    Page.read(ROOT / "bench" / "README.md"),
    *(Page.read(path) for path in sorted(ROOT.glob("bench/results/cpu-*.md"))),
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(ROOT)))

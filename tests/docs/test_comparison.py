"""docs/comparison.md: 30 rows, each with a test of ours that exists, and sources for what other engines have."""

import re

from support.documents import ROOT
from support.markdown import Page

PAGE = Page.read(ROOT / "docs" / "comparison.md")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.tables()]
FEATURES = [row for row in ROWS if len(row) == 6 and row[0] not in ("feature", "---")]
SOURCES = {row[0] for row in ROWS if len(row) == 2}


def test_thirty_rows():
    assert len(FEATURES) == 30 and len({row[0] for row in FEATURES}) == 30


def test_each_cell_of_ours_names_a_test_that_exists_or_says_that_it_is_missing():
    for feature, ours, *_ in FEATURES:
        found = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", ours)
        assert found or ours == "not in this version", feature
        for file, name in found:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), name


def test_each_cell_of_others_has_its_source():
    for feature, _, *others in FEATURES:
        for cell in filter(None, others):
            names = re.findall(r"\[([vslo]\d)\]", cell)
            assert names and set(names) <= SOURCES, f"{feature}: {cell}"
    used = set(re.findall(r"\[([vslo]\d)\]", PAGE.text))
    assert used == {name for name in SOURCES if re.fullmatch(r"[vslo]\d", name)}

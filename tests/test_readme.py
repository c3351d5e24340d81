"""The README is short, and every figure of its table stands in the results that its row links to."""

import re

import pytest

from tests.markdown import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| \[[^\]]+\]\((benchmarks/[^)]+)\) (\|.*)$", README, flags=re.MULTILINE)


def test_is_read_in_a_few_minutes():
    assert len(README.split()) < 900


@pytest.mark.parametrize(("page", "cells"), ROWS)
def test_figures_stand_in_the_results(page, cells):
    results = (REPOSITORY / page).read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", cells)
    assert figures, "a row of results has figures"
    assert [
        figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", results)
    ] == []


def test_the_first_table_stands_in_the_results_below_it():
    first, _, rest = README.partition("| eight adapters")[2].partition("\n\n")
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+", first)
    page = re.search(r"\((benchmarks/[^)]+)\)", rest)
    assert len(figures) == 4 and page is not None
    results = (REPOSITORY / page[1]).read_text(encoding="utf-8")
    assert [figure for figure in figures if figure not in results] == []


def test_the_table_is_there():
    assert len(ROWS) >= 3

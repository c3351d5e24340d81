"""The checker of prose: what a sentence is, which ones it finds, and that the pages have none."""

import runpy

import pytest

from tests.markdown import REPOSITORY

PROSE = runpy.run_path(str(REPOSITORY / "docs" / "prose.py"))


def sentences(text):
    return [sentence for _, sentence in PROSE["sentences"](text)]


def test_paragraphs_items_and_cells_are_read_sentence_by_sentence():
    text = "# Title\n\nOne line\ngoes on. Two `x.y z` here: e.g. this.\n\n* item [a b](c.md)\n* next\n\n"
    text += "| cell | other |"
    assert sentences(text) == [
        "Title",
        "One line goes on.",
        "Two code here: e.g this.",
        "item a b",
        "next",
        "cell",
        "other",
    ]


def test_code_comments_and_formulas_are_left_out():
    text = "A.\n\n```bash\nmany words in here\n```\n\n<!-- hidden -->\n\n$$x\ny$$\n\nB $a + b = c$."
    assert sentences(text) == ["A.", "B code."]


@pytest.mark.parametrize(("words", "faults"), [(30, 0), (31, 1)])
def test_a_sentence_has_at_most_thirty_words(words, faults, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("First.\n\n" + " ".join(["word"] * words) + ".")
    monkeypatch.setitem(PROSE["findings"].__globals__, "REPOSITORY", tmp_path)
    found = list(PROSE["findings"](page))
    assert [(finding.page, finding.line) for finding in found] == [("page.md", 3)] * faults


@pytest.mark.parametrize("text", ["It is quite fast.", "In order to win.", "Layers that PEFT has not."])
def test_empty_words_are_found(text, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setitem(PROSE["findings"].__globals__, "REPOSITORY", tmp_path)
    assert len(list(PROSE["findings"](page))) == 1


def test_the_pages_are_found():
    names = {page.relative_to(REPOSITORY).as_posix() for page in PROSE["pages"]()}
    assert {"README.md", "docs/faq.md", "docs/reproducibility/routing.md"} <= names
    assert "docs/methods.md" not in names

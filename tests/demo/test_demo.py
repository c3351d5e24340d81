"""The demo: data without repetitions, honest sentences, and (slow) the whole of it on the real packages."""

import json
from importlib.metadata import PackageNotFoundError, version

import pytest

from moe_adapt.data.packages import BBC_NEWS, MINILM, package_folder
from moe_adapt.demo.__main__ import main, reserve
from moe_adapt.demo.bbc import few_shot_split, load_bbc_news, read_articles
from moe_adapt.demo.comparison import Outcome, Settings
from moe_adapt.demo.report import conclusion, results_table, summarise
from moe_adapt.errors import UserError


def installed(package):
    try:
        return version(package[0]) == package[1]
    except PackageNotFoundError:
        return False


needs_packages = pytest.mark.skipif(
    not (installed(BBC_NEWS) and installed(MINILM)), reason="needs the demo's data packages (extra 'demo')"
)


def outcome(method, seed, accuracy):
    return Outcome(method, seed, accuracy, accuracy, trainable=10, seconds=1.0, folder="")


def outcomes(differences):
    return [
        outcome(method, seed, 0.5 + (difference if method == "dynmole" else 0))
        for seed, difference in enumerate(differences)
        for method in ("head", "lora", "dynmole")
    ]


def test_both_encodings_read_alike_and_repetitions_go(tmp_path):
    for name in ("business", "tech"):
        (tmp_path / name).mkdir()
    opening = "A deal worth \xa3600m " + "x" * 300
    (tmp_path / "business" / "001.txt").write_bytes(opening.encode("utf-8"))
    (tmp_path / "business" / "002.txt").write_bytes(f"{opening}\n\n another end".encode("latin-1"))
    (tmp_path / "tech" / "001.txt").write_bytes("Another \xa3 story".encode("latin-1"))
    rows = read_articles(tmp_path)
    assert [row["label"] for row in rows] == ["business", "tech"]
    assert [row["text"][:20] for row in rows] == [opening[:20], "Another \xa3 story"]


def test_too_few_articles_are_named():
    rows = [{"text": str(i), "label": "tech"} for i in range(5)]
    with pytest.raises(UserError, match="'tech' has 5 articles, 3 \\+ 3 are needed"):
        few_shot_split(rows, 3, 3, seed=0)


def test_split_depends_on_the_seed_only():
    rows = [{"text": str(i), "label": "ab"[i % 2]} for i in range(40)]
    assert few_shot_split(rows, 5, 5, seed=1) == few_shot_split(rows, 5, 5, seed=1)
    assert few_shot_split(rows, 5, 5, seed=1) != few_shot_split(rows, 5, 5, seed=2)


def test_summary_and_table():
    runs = outcomes([0.0, 0.1])
    assert summarise(runs)["dynmole"]["accuracy"] == pytest.approx(0.55)
    assert summarise(runs)["dynmole"]["accuracy_sd"] == pytest.approx(0.0707, abs=1e-4)
    assert summarise(runs[:3])["lora"]["accuracy_sd"] is None
    assert results_table(runs, Settings(backbone="", classes=("a", "b"))).row_count == 3


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.02, -0.02, 0.01], "a tie"),
        ([0.05, 0.051, 0.052], r"\+5.1 points .* more than twice"),
        ([-0.05, -0.051, -0.052], r"-5.1 points .* more than twice"),
        ([0.05], "says little"),
    ],
)
def test_the_conclusion_claims_no_more_than_the_numbers(differences, words):
    import re

    assert re.search(words, conclusion(outcomes(differences)))


def test_only_an_earlier_demo_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        reserve(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    earlier = tmp_path / "earlier"
    (earlier / "data").mkdir(parents=True)
    (earlier / "seed_0").mkdir()
    reserve(earlier)
    assert list(earlier.iterdir()) == []


def test_a_missing_package_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install --no-deps no-such-thing==1\.0"):
        package_folder("no-such-thing", "1.0", "folder")


def test_another_version_is_refused():
    with pytest.raises(UserError, match=r"0\.0\.0\.1 is needed"):
        package_folder("pytest", "0.0.0.1", "pytest")


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match="does not carry"):
        package_folder("pytest", version("pytest"), "nowhere")


@needs_packages
def test_bbc_news_without_repetitions():
    rows = load_bbc_news()
    assert len(rows) == 2103
    assert len({row["text"] for row in rows}) == len(rows)
    assert {row["label"] for row in rows} == {"business", "entertainment", "politics", "sports", "tech"}
    assert not any("\ufffd" in row["text"] or "\xc2" in row["text"] for row in rows)


@needs_packages
@pytest.mark.slow
def test_the_whole_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "demo"
    main(
        [
            "--compare",
            "--out",
            str(out),
            "--seeds",
            "1",
            "--epochs",
            "1",
            "--per-class",
            "2",
            "--test-per-class",
            "4",
        ]
    )
    results = json.loads((out / "results.json").read_text())
    assert {run["method"] for run in results["runs"]} == {"head", "lora", "dynmole"}
    sizes = {run["method"]: run["trainable"] for run in results["runs"]}
    assert sizes["lora"] == pytest.approx(sizes["dynmole"], rel=0.01)
    assert results["reload_difference"] <= 1e-5
    assert (out / "seed_0" / "dynmole" / "routing.png").stat().st_size > 0
    assert (out / "bbc-news-dynmole" / "adapter_model.safetensors").exists()
    assert "sentence-transformers/all-MiniLM-L6-v2" in (out / "bbc-news-dynmole" / "README.md").read_text()

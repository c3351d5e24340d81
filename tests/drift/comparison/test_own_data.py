"""A file of one's own through the command: to a report, killed and resumed, and what cannot be compared."""

import json
import random
import signal
import subprocess
import sys

import pytest

from moe_adapt.cli import main

ROWS = 300


@pytest.fixture
def table(tmp_path):
    """Write rows whose rule changes, with words, dates and gaps; a new word comes late."""

    def write(rows=ROWS, **columns):
        rng = random.Random(3)
        path = tmp_path / "shop.csv"
        names = ["when", "colour", "size", "bought"]
        lines = [",".join(names)]
        for t in range(rows):
            colour = rng.choice(["red", "blue"] if t < 200 else ["red", "blue", "violet"])
            size = rng.gauss(0, 1)
            bought = (size > 0) if t < 150 else (size + (colour == "red") < 0.5)
            cells = {
                "when": f"2024-03-{1 + t // 24:02d} {t % 24:02d}:00",
                "colour": colour if rng.random() > 0.05 else "",
                "size": f"{size:.3f}" if rng.random() > 0.05 else "",
                "bought": "yes" if bought else "no",
            }
            cells |= {name: str(value(t)) for name, value in columns.items()}
            lines.append(",".join(cells[name] for name in names))
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def cells(out):
    """Return the results of a folder without the readings of clocks."""
    found = {}
    for path in sorted(out.glob("cells/*/*/*.json")):
        content = json.loads(path.read_text())
        del content["cpu_us_per_row"], content["checkpoints"]["cpu_seconds"], content["made_with"]
        found[path.relative_to(out)] = content
    return found


def test_from_a_csv_to_a_report(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["drift", "--data", str(table()), "--label", "bought", "--out", str(out)]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    report = (out / "report.html").read_text()
    verdict = report[report.index('<p class="verdict">') :].partition("</p>")[0]
    assert "of the rows driftmoe is right" in verdict and "95 % interval" in verdict
    found = cells(out)
    assert len(found) == 6 and {one["rows"] for one in found.values()} == {ROWS}
    by_name = {path.parts[2]: one["accuracy"] for path, one in found.items()}
    assert by_name["driftmoe"] > max(by_name["majority"], by_name["no_change"]) + 0.1


@pytest.mark.parametrize("method", ["srp10", "lev_bag10", "hat", "knn", "fast_hoeffding_tree"])
def test_every_learner_takes_gaps_and_words(table, tmp_path, method):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"streams: [{{name: mine, file: {table(60)}, label: bought}}]\nmethods: [{method}]\nseeds: [1]\n"
        "memory: false\n"
    )
    assert main(["drift", "-c", str(recipe), "--out", str(tmp_path / "out")]) == 0


def test_killed_and_resumed_ends_alike(table, tmp_path, capsys):
    data = [
        "--data",
        str(table()),
        "--label",
        "bought",
        "--methods",
        "majority",
        "hoeffding_tree",
        "driftmoe",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["drift", *data, "--out", str(whole)]) == 0
    program = "import sys; from moe_adapt.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "drift", *data, "--out", str(killed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("1/3"):
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert not (killed / "report.html").exists()
    before = {path: path.read_bytes() for path in killed.glob("cells/*/*/*.json")}
    assert 1 <= len(before) < 3
    capsys.readouterr()
    assert main(["drift", *data, "--out", str(killed)]) == 0
    assert f"{len(before)} of 3 runs are there" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert cells(killed) == cells(whole)
    assert (killed / "report.html").exists()


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({}, ["--label", "sold"], "no column 'sold'"),
        ({"bought": lambda t: "yes"}, [], "is 'yes' in every row"),
        ({"bought": lambda t: "" if t == 4 else t % 2}, [], "missing in 1 rows, first in row 5"),
        ({"bought": lambda t: f"order {t}"}, ["rows"], "1,100 different values"),
        ({"size": lambda t: "inf" if t == 6 else t}, [], "'size' is infinite in row 7"),
        ({}, ["--nominal", "zip"], "no column 'zip'"),
        ({"bought": lambda t: t % 2}, ["few"], "10 rows; a comparison needs 20"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(table, tmp_path, capsys, columns, options, words):
    rows = {"rows": 1100, "few": 10}.get(options[0] if options else "", 40)
    options = [] if rows != 40 else options
    out = tmp_path / "out"
    assert main(["drift", "--data", str(table(rows, **columns)), "--out", str(out), *options]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and "Traceback" not in told
    assert not out.exists()


def test_dates_are_numbers_and_words_may_come_late(table, tmp_path):
    out = tmp_path / "out"
    command = ["drift", "--data", str(table()), "--out", str(out), "--methods", "hoeffding_tree"]
    assert main(command) == 0
    (one,) = cells(out).values()
    assert one["rows"] == ROWS and one["classes"] == 2
    assert main([*command[:-1], "naive_bayes"]) == 0, "the same folder goes on"
    assert len(cells(out)) == 2

"""The page of source systems is made from its table, and what the table names exists."""

import importlib
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from moe_adapt.cli import main
from moe_adapt.cli.described import REGISTRIES, registry_of
from moe_adapt.cli.main import COMMANDS
from moe_adapt.routing.sample import SAMPLE_ROUTERS
from moe_adapt.runs.config_names import packaged_configs
from tests.test_site import load, resolve

TESTS = Path(__file__).parent
TABLE = yaml.safe_load((TESTS.parent / "docs" / "systems.yaml").read_text(encoding="utf-8"))
RESULTS = TESTS.parent / "benchmarks" / "results"
BUILT = [entry for entry in TABLE if entry.get("parts")]
CONFIGURED = {"fit", "stream"}


def named(entries):
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: str(entry["number"]))


def test_every_system_has_one_entry_and_the_page_is_made_of_them():
    assert [entry["number"] for entry in TABLE] == list(range(1, 50))
    page = load("hooks", "source_systems").coverage_page()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [row[0].strip("| ") for row in rows] == [str(entry["number"]) for entry in TABLE]
    assert all(entry["name"] in row[1] and len(row) == 7 for entry, row in zip(TABLE, rows, strict=True))
    built = sum(bool(entry.get("parts")) for entry in TABLE)
    assert f"{built} have parts; {len(TABLE) - built} are outside" in page


@named(TABLE)
def test_an_entry_is_whole(entry):
    assert entry["name"] and entry["paper"]
    if entry.get("parts"):
        assert entry["command"] and entry["tests"] and entry["verdict"]
    else:
        assert entry["outside"] and not {"command", "tests", "verdict"} & entry.keys()


@named(BUILT)
def test_parts_exist(entry):
    for part in entry["parts"]:
        section, _, name = part.partition(" ")
        if not name:
            assert section.startswith("moe_adapt.") and resolve(section) is not None
        elif section == "method":
            assert f"routed_lora/{name}" in packaged_configs()
        elif section == "sample_routers":
            assert name in SAMPLE_ROUTERS
        else:
            assert section in REGISTRIES and name in registry_of(section), part


@named(BUILT)
def test_commands_exist(entry, capsys):
    program, command, *words = entry["command"].split()
    assert program == "moe-adapt" and command in COMMANDS
    for flag, value in itertools.pairwise(words):
        if flag == "--config":
            assert value in packaged_configs()
    options = [word for word in words if word.startswith("--") and word != "--help"]
    if command in CONFIGURED or not options:
        return
    assert main([command, *([words[0]] if command == "pool" else []), "--help"]) == 0
    known = capsys.readouterr().out
    assert [option for option in options if not re.search(rf"{option}\b", known)] == []


@named(BUILT)
def test_rows_exist(entry):
    for row in entry.get("rows", []):
        file, _, name = row.partition(" ")
        report = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
        rows = report["rows"] if "rows" in report else report["experiments"]
        assert name in ({own["method"] for own in rows} if isinstance(rows, list) else rows), row


@named(BUILT)
def test_tests_exist(entry):
    for test in entry["tests"]:
        assert re.search(r"^def test_", (TESTS / test).read_text(encoding="utf-8"), re.MULTILINE), test


def test_a_part_that_is_gone_would_be_found():
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        resolve("moe_adapt.experts.rehoming.gone")
    assert importlib.import_module("moe_adapt.experts.rehoming")

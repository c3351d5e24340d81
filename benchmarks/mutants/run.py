"""How many of a sample of mutants the tests notice.

    python benchmarks/mutants/run.py --work WORK [--seed 0] [--per_room 12] [--rooms routing ...]
    python benchmarks/mutants/run.py --work WORK --again

Rooms are routing, experts, optim, learners and drift. A mutant is one changed place of one module; it is
killed if one of the tests nearest to the module fails (or an example of a docstring). Libraries are imported
once; each mutant is a fork of that process whose import of the module gives the changed one, so that no file
is touched. A mutant that uses more processor time than its limit counts as killed: it loops. Rows are kept in
WORK as they come, and a second call goes on; ``--again`` runs those that survived once more.
"""

import argparse
import contextlib
import doctest
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from nearest import nearest_tests
from operators import Mutant, count, mutant

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
ROOMS = ("routing", "experts", "optim", "learners", "drift")
#: What shows or words something: nothing that a value test would read.
LEFT_OUT = {"plots", "report", "summary", "__init__"}
#: Imported before the first fork.
LIBRARIES = (
    "numpy", "scipy.special", "torch", "lightning", "peft", "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama", "timm", "river.checks", "river.tree", "hypothesis", "pytest",
    "pandas", "xdist", "pytest_timeout",
)  # fmt: skip
#: Processor time of a mutant, seconds.
LIMIT = 240


class _Changed(importlib.machinery.SourceFileLoader):
    """Loads a changed module."""

    def __init__(self, name: str, path: str, changed: Mutant) -> None:
        super().__init__(name, path)
        self.changed = changed

    def get_code(self, fullname: str) -> CodeType:
        """Return the changed code."""
        return compile(self.changed.tree, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a changed module before the unchanged one."""

    def __init__(self, name: str, path: Path, changed: Mutant) -> None:
        self.name, self.path, self.changed = name, path, changed

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        """Return the changed module's spec."""
        if name != self.name:
            return None
        loader = _Changed(name, str(self.path), self.changed)
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def sample(rooms: list[str], per_room: int, seed: int) -> list[tuple[str, int]]:
    """Return mutants as pairs of module and number, at most two of a module."""
    draw, found = random.Random(seed), []
    for room in rooms:
        pairs = []
        for path in sorted((ROOT / "moe_adapt" / room).rglob("*.py")):
            if path.stem not in LEFT_OUT:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                pairs += [(module, number) for number in range(count(path.read_text("utf-8")))]
        draw.shuffle(pairs)
        taken: dict[str, int] = {}
        chosen = []
        for module, number in pairs:
            if taken.get(module, 0) < 2 and len(chosen) < per_room:
                taken[module] = taken.get(module, 0) + 1
                chosen.append((module, number))
        found += chosen
    return found


def judge(module: str, number: int) -> dict[str, Any]:
    """Return what became of a mutant, as a JSON-ready row."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    changed = mutant(path.read_text("utf-8"), number)
    tests = nearest_tests(ROOT, module)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = _try(module, path, changed, tests)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    survived = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
    return {
        "room": module.split(".")[1],
        "module": module,
        "number": number,
        "line": changed.line,
        "before": changed.before[:200],
        "after": changed.after[:200],
        "outcome": "survived" if survived else "looped" if os.WIFSIGNALED(status) else "killed",
        "tests": [test.relative_to(ROOT).as_posix() for test in tests],
        "cpu_seconds": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, 1),
    }


def _try(module: str, path: Path, changed: Mutant, tests: list[Path]) -> int:
    """Run the tests on a changed module, in a process of its own; 0 if none noticed."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir(ROOT)
    sys.meta_path.insert(0, _Finder(module, path, changed))
    if doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS).failed:
        return 1
    if not tests:
        return 0
    settings = ["-o", "addopts=", "-x", "-q", "-m", "not slow and not gpu", "--import-mode=importlib"]
    code = pytest.main([*map(str, tests), *settings, "-p", "no:cacheprovider", "-p", "no:xdist"])
    return int(code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED, 3, 4))


def gather(rows: list[dict[str, Any]], seed: int, first: dict[str, str]) -> dict[str, Any]:
    """Return the report: shares of survivors by room, and the rows."""
    from moe_adapt.manifest import collect

    def share(of: list[dict[str, Any]]) -> dict[str, Any]:
        left = sum(row["outcome"] == "survived" for row in of)
        return {"mutants": len(of), "survived": left, "share": round(left / max(len(of), 1), 3)}

    rooms = {room: share([row for row in rows if row["room"] == room]) for room in ROOMS}
    facts = collect()
    facts["command"] = f"benchmarks/mutants/run.py --work WORK --seed {seed}"
    at_first = sum(outcome == "survived" for outcome in first.values())
    return {
        "seed": seed,
        "all": share(rows),
        "survived_before_tests_were_added": at_first,
        "rooms": rooms,
        "rows": rows,
        "manifest": facts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of finished rows")
    parser.add_argument("--seed", type=int, default=0, help="fixes the sample")
    parser.add_argument("--per_room", type=int, default=12)
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=ROOMS)
    parser.add_argument("--again", action="store_true", help="run those that survived once more")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path[0:1] = [str(ROOT), sys.path[0]]
    for library in LIBRARIES:
        importlib.import_module(library)
    rows, first = [], {}
    for module, number in sample(options.rooms, options.per_room, options.seed):
        path = options.work / f"{options.seed}-{module}-{number}.json"
        history = json.loads(path.read_text()) if path.is_file() else []
        if not history or (options.again and history[-1]["outcome"] == "survived"):
            history.append(judge(module, number))
            path.write_text(json.dumps(history))
            row = history[-1]
            place = f"{module}:{row['line']}"
            print(
                f"{row['outcome']:8} {row['cpu_seconds']:6} s {place}: {row['before']} -> {row['after']}",
                flush=True,
            )
        first[f"{module}-{number}"] = history[0]["outcome"]
        rows.append(history[-1])
    report = gather(rows, options.seed, first)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"all": report["all"], **report["rooms"]}, indent=1))


if __name__ == "__main__":
    main()

"""Kill a command at every file operation, as by ``kill -9``, run it again, and look at what is left.

Counted are the operations that change what is on the disk: replacing, renaming and exchanging names,
unlinking, syncing, and opening a file for writing. The process ends before the operation, by ``os._exit``:
nothing is flushed, closed or tidied up. Every attempt is a fork of one process that has imported everything.

    python tests/faults/killing.py fit FOLDER [EVERY] [FIRST]
"""

import builtins
import contextlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DIED = 137

#: A fork has none of its parent's threads, so the parent must not have started a pool of them.
os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Scenario:
    """A command to kill.

    Attributes:
        prepare: Makes what the command needs in a folder, once.
        words: The command, given the folder and the attempt's own folder.
        again: The command that goes on.
        faults: What is wrong afterwards, given the attempt's folder and that of a run that was not killed.
        between: What is wrong right after the kill, given the attempt's folder.
    """

    prepare: Callable[[Path], None]
    words: Callable[[Path, Path], list[str]]
    again: Callable[[Path, Path], list[str]]
    faults: Callable[[Path, Path], list[str]]
    between: Callable[[Path], list[str]] = lambda folder: []


#: Operations of this process so far.
COUNT = [0]


def forked(work: Callable[[], int], log: Path) -> int:
    """Run `work` in a fork and return its exit code; what it prints goes to `log`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                code = work()
                sys.stdout.flush()
                sys.stderr.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_operations(folder: Path, limit: int) -> list[int]:
    """Patch the file operations of this process; it dies before the one of number `limit`."""
    count = COUNT

    def counted(function, mine):
        def call(*words, **options):
            if mine(*words, **options):
                count[0] += 1
                if count[0] == limit:
                    os._exit(DIED)
            return function(*words, **options)

        return call

    def inside(path, *words, **options):
        return isinstance(path, str | Path) and str(path).startswith(str(folder))

    def writes(path, mode="r", *words, **options):
        return inside(path) and isinstance(mode, str) and bool(set(mode) & set("wax+"))

    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name), inside))
    os.fsync = counted(os.fsync, lambda handle: True)
    builtins.open = io.open = counted(builtins.open, writes)
    from moe_adapt import files

    files._exchanged = counted(files._exchanged, inside)
    return count


def attempt(words: list[str], folder: Path, limit: int, log: Path) -> tuple[int, int]:
    """Run a command that dies at operation `limit` (0: never); return its exit code and its operations."""
    told = log.with_suffix(".count")
    told.unlink(missing_ok=True)

    def work() -> int:
        from moe_adapt.cli import main

        count = count_operations(folder, limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(words)
        with contextlib.suppress(OSError):
            told.write_text(str(count[0]))
        return code

    code = forked(work, log)
    return code, int(told.read_text()) if told.is_file() else 0


def kill_everywhere(scenario: Scenario, root: Path, every: int = 1, first: int = 1) -> dict:
    """Kill a command at every `every`-th operation and run it again; return how that went."""
    root.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_STATE_HOME"] = str(root / "state")
    scenario.prepare(root)
    whole, log = root / "whole", root / "log.txt"
    code, total = attempt(scenario.words(root, whole), whole, 0, log)
    assert code == 0, log.read_text()[-3000:]
    found: dict = {"operations": total, "kills": 0, "faults": []}
    for limit in range(first, total + 1, every):
        folder, own = root / "killed", root / f"log-{limit}.txt"
        shutil.rmtree(folder, ignore_errors=True)
        code, _ = attempt(scenario.words(root, folder), folder, limit, own)
        if code != DIED:
            found["faults"].append(f"{limit}: ended with {code} instead of being killed")
            continue
        found["kills"] += 1
        wrong = scenario.between(folder)
        code, _ = attempt(scenario.again(root, folder), folder, 0, own)
        wrong += [] if code in (0, 2) else [f"went on with exit code {code}"]
        wrong += scenario.faults(folder, whole)
        found["faults"] += [f"{limit}: {fault}" for fault in wrong]
        if not wrong:
            own.unlink()
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.faults import killing
    from tests.faults.scenarios import SCENARIOS

    name, where, *numbers = sys.argv[1:]
    print(json.dumps(killing.kill_everywhere(SCENARIOS[name], Path(where), *map(int, numbers))))

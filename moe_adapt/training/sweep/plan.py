"""What a sweep runs: a trial per method, task and seed, each an ordinary ``moe-adapt`` command.

A sweep is a YAML file with the keys ``command`` (``fit`` or ``stream``), ``arguments`` of all trials,
``methods`` and ``tasks`` (names, each with more arguments), ``seeds``, and the ``metric`` to show;
``docs/sweep.md`` has one.

A trial's folder is a run folder like any other, so a trial that has finished is known by its manifest or
result and is not run again; one that was interrupted goes on from its checkpoint.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.reading import read_json, read_yaml

__all__ = ["Sweep", "Trial"]

#: Command -> the file that says how its run ended, and the checkpoint that it goes on from.
RECORDS = {"fit": ("manifest.json", "checkpoints/last.ckpt"), "stream": ("result.json", "last.ckpt")}
KEYS = ("command", "arguments", "methods", "tasks", "seeds", "metric")


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        method: Name of the method.
        task: Name of the task.
        seed: Seed of the run.
        folder: The run's folder.
        command: Name of the command.
        arguments: Its arguments, without folder and seed.
    """

    method: str
    task: str
    seed: int
    folder: Path
    command: str
    arguments: tuple[str, ...]

    def words(self) -> list[str]:
        """Return the whole command, which goes on from a checkpoint if there is one."""
        interrupted = (self.folder / RECORDS[self.command][1]).is_file()
        how = "--resume" if interrupted else "--overwrite"
        place = [f"--out={self.folder}", f"--seed_everything={self.seed}", how]
        return [self.command, *self.arguments, *place]

    def metrics(self) -> dict[str, float] | None:
        """Return the metrics of the run if it has finished, else None."""
        path = self.folder / RECORDS[self.command][0]
        try:
            record = read_json(path, "the record of a run")
        except UserError:  # none yet, or not whole: the trial runs again
            return None
        if record.get("status") != "finished" or not isinstance(record.get("metrics"), dict):
            return None
        return {name: value for name, value in record["metrics"].items() if value is not None}


@dataclass(frozen=True)
class Sweep:
    """Methods, tasks and seeds.

    Attributes:
        trials: The runs.
        metric: What the table and the picture show; None for all metrics in the table and no picture.
    """

    trials: list[Trial]
    metric: str | None = None

    @classmethod
    def read(cls, path: Path, out: Path) -> "Sweep":
        """Read a sweep's file.

        Args:
            path: The file.
            out: Folder of all runs; they are ``out/<task>/<method>/<seed>``.

        Raises:
            UserError: If the file is not there or does not describe a sweep.
        """
        if not path.is_file():
            raise UserError(f"there is no sweep {path}; give a YAML file with methods, tasks and seeds.")
        content = read_yaml(path, "a sweep in YAML")
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no mapping; a sweep has the keys {', '.join(KEYS)}.")
        for key in content:
            if key not in KEYS:
                raise UserError(f"a sweep has no key {key!r}.{did_you_mean(str(key), KEYS)}")
        command = content.get("command", "fit")
        if command not in RECORDS:
            raise UserError(f"a sweep runs {' or '.join(RECORDS)}, not {command!r}.")
        methods = _named(content.get("methods"), "methods")
        tasks = _named(content.get("tasks") or {"task": []}, "tasks")
        seeds = content.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
            raise UserError(f"seeds is a list of whole numbers, got {seeds!r}.")
        common = _words(content.get("arguments") or [], "arguments")
        trials = [
            Trial(
                method,
                task,
                seed,
                out.resolve() / task / method / str(seed),
                command,
                (*common, *where, *how),
            )
            for task, where in tasks.items()
            for method, how in methods.items()
            for seed in dict.fromkeys(seeds)
        ]
        metric = content.get("metric")
        return cls(trials, None if metric is None else str(metric))


def _named(value: Any, key: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{key} maps names to lists of arguments, got {value!r}.")
    for name in value:
        if not re.fullmatch(r"[\w][\w.-]*", str(name)):
            raise UserError(f"the name {name!r} under {key} becomes a folder: use letters, digits, _ and -.")
    return {str(name): _words(words or [], f"{key}.{name}") for name, words in value.items()}


def _words(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or any(isinstance(word, dict | list) for word in value):
        raise UserError(f"{key} is a list of arguments, as on the command line, got {value!r}.")
    return tuple(json.dumps(word) if isinstance(word, bool) else str(word) for word in value)

"""``moe-adapt group DATA --key COLUMN``: find customers that agree, and train one expert per group.

Three steps, each of which is done once: a small expert for every value of the column, in
``RUN/groups/members``; the loss of every expert on everybody's rows and the groups in it, in ``RUN/groups``;
an expert per group in ``RUN``, which is a run as ``fit`` writes it. ``--resume`` goes on after a stop.
"""

import json
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.main import Interrupted
from moe_adapt.errors import UserError
from moe_adapt.files import write_file
from moe_adapt.reading import read_json

__all__ = ["group"]

#: Options of ``fit`` that may follow; they hold for both trainings.
_OF_FIT = ("--model", "--data", "--trainer", "--config", "-c", "--seed_everything", "--custom_modules")
_ASKED = "groups.request.json"


def group(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``group``.

    Raises:
        UserError: For a mistake in the arguments or the data.
    """
    own, for_fit = _split(argv)
    options = _parser().parse(own)
    if options.small_rank < 1 or options.max_rows < 1:
        raise UserError("--small_rank and --max_rows must be at least 1.")
    rows, truth = _read(options)
    work = options.to / "groups"
    _claim(options, work, for_fit)
    words = _words(options, for_fit)
    try:
        grouping = _find(options, work, words, rows, truth)
        print(f"step 3 of 3: an expert for each of {grouping.count} groups", flush=True)
        groups = json.dumps(grouping.mapping(), ensure_ascii=False)
        shared = str(options.shared).lower()
        ours = [f"--key={options.key}", f"--key_shared={shared}", f"--data.domain_groups={groups}"]
        _fit_once(options.to, [*words, *ours], options.overwrite)
    except Interrupted as stop:
        raise Interrupted("go on with the same command and --resume.") from stop
    print(f"groups:     {work / 'groups.html'}")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command's own words, and those for ``fit``."""
    own: list[str] = []
    for_fit: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        name = word.partition("=")[0]
        if name.partition(".")[0] not in _OF_FIT:
            own.append(word)
            continue
        for_fit.append(word)
        if "=" not in word:
            if not left:
                raise UserError(f"{word} needs a value.")
            for_fit.append(left.pop(0))
    return own, for_fit


def _read(options: Namespace) -> tuple[Counter[str], dict[str, str] | None]:
    """Return the number of rows of each value of the key, and the group of each where it is known."""
    from moe_adapt.data.labels import column_of
    from moe_adapt.data.tables import load_table, require_columns

    table = load_table(options.data, "train")
    require_columns(table, [options.key, *([options.truth] if options.truth else [])], options.data)
    values = column_of(table[options.key], str(options.data), what=options.key).texts
    rows = Counter(values)
    if len(rows) < 2:
        raise UserError(
            f"{options.data} has one {options.key} only ({values[0]!r}); groups need at least two, better "
            "eight: train one LoRA with moe-adapt fit."
        )
    if options.groups is not None and not 1 <= options.groups <= len(rows):
        raise UserError(f"--groups {options.groups}: {len(rows)} values make 1 to {len(rows)} groups.")
    if options.groups is None and len(rows) < 3:
        raise UserError(f"two values of {options.key!r} leave no choice: give --groups 1 or --groups 2.")
    if options.truth is None:
        return rows, None
    truth: dict[str, str] = {}
    for value, true in zip(values, map(str, table[options.truth]), strict=True):
        if truth.setdefault(value, true) != true:
            raise UserError(
                f"{options.key} {value!r} has two values of {options.truth!r} ({truth[value]!r} and "
                f"{true!r}); it must be in one group."
            )
    return rows, truth


def _claim(options: Namespace, work: Path, for_fit: list[str]) -> None:
    """Take the folder: a new one, one that goes on with the same options, or one to replace."""
    asked = {
        "data": str(options.data),
        "key": options.key,
        "backbone": options.backbone,
        "small_rank": options.small_rank,
        "max_rows": options.max_rows,
        "options": for_fit,
    }
    path = work / _ASKED
    if options.overwrite and options.resume:
        raise UserError("give --resume to go on or --overwrite to begin again, not both.")
    if options.overwrite:
        shutil.rmtree(work, ignore_errors=True)
    elif options.resume and path.is_file():
        if read_json(path, "the options of a run") != asked:
            raise UserError(f"{options.to} was begun with other options; repeat those, or give --overwrite.")
    elif work.exists():
        raise UserError(
            f"{options.to} holds groups already; go on with --resume, or replace with --overwrite."
        )
    elif (options.to / "checkpoints").exists():
        raise UserError(f"{options.to} already holds a run; choose another folder, or give --overwrite.")
    write_file(path, json.dumps(asked, indent=2) + "\n")


def _words(options: Namespace, for_fit: list[str]) -> list[str]:
    """Return the options of both trainings."""
    named = any(word.partition("=")[0] in ("--model", "--config", "-c") for word in for_fit)
    words = [] if named else ["--config", "task/sequence_classification"]
    words += [*for_fit, f"--model.backbone={options.backbone}", f"--data.train={options.data}"]
    return words


def _find(
    options: Namespace, work: Path, words: list[str], rows: Counter[str], truth: dict[str, str] | None
) -> Any:
    """Train the small experts, judge them on everybody's rows, and find the groups."""
    members = work / "members"
    print(f"step 1 of 3: a small expert for each of {len(rows)} values of {options.key!r}", flush=True)
    rank = [f"--model.tuner.r={options.small_rank}", f"--model.tuner.alpha={2 * options.small_rank}"]
    _fit_once(members, [*words, f"--key={options.key}", "--key_shared=false", *rank], False)

    from moe_adapt.runs.groups import write_groups_report
    from moe_adapt.training.groups import Grouping

    print("step 2 of 3: the loss of every expert on everybody's rows", flush=True)
    names, losses = _losses(members, work / "losses.json", options.max_rows)
    grouping = Grouping.find(options.key, names, losses, options.groups, truth)
    grouping.save(work)
    write_groups_report(work, grouping, rows)
    for name, own in grouping.groups().items():
        print(f"  {name}: {', '.join(own)}")
    print(grouping.verdict(), flush=True)
    return grouping


def _losses(members: Path, path: Path, most: int) -> tuple[list[str], Any]:
    """Return the values of the key and the matrix of losses; the file's rows are not computed anew."""
    import numpy as np
    from rich.progress import Progress

    from moe_adapt.runs.rebuild import load_data, load_module
    from moe_adapt.training.groups import cross_losses

    data: Any = load_data(members)
    data.prepare_data()
    data.setup("fit")
    names = data.domains.names
    known = read_json(path, "a matrix of losses") if path.is_file() else {}
    with Progress(disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("losses", total=len(names), completed=len(known))

        def keep(key: int, row: np.ndarray) -> None:
            known[names[key]] = row.tolist()
            write_file(path, json.dumps(known, ensure_ascii=False) + "\n")
            progress.advance(bar)

        before = {names.index(name): np.array(row) for name, row in known.items()}
        losses = cross_losses(load_module(members, "last"), data, most, before, keep)
    return names, losses


def _fit_once(folder: Path, words: list[str], overwrite: bool) -> None:
    """Train into a folder, unless that has been done; go on with a training that was stopped."""
    from moe_adapt.cli.fit import fit

    path = folder / "manifest.json"
    if not overwrite and path.is_file():
        if read_json(path, "the manifest of a run").get("status") == "finished":
            print(f"{folder} is trained already")
            return
        if (folder / "checkpoints" / "last.ckpt").is_file():
            fit([*words, f"--out={folder}", "--resume"])
            return
        overwrite = True
    fit([*words, f"--out={folder}", *["--overwrite"] * overwrite])


def _parser() -> CommandParser:
    parser = CommandParser(
        "group",
        "Find customers that agree, by how well the expert of each serves the others, and train one expert "
        "per group. Options of `fit` (--model.*, --data.*, --trainer.*, --config) hold for both trainings.",
    )
    parser.add_argument("data", metavar="DATA", help="training rows, of all customers")
    parser.add_argument("--key", required=True, metavar="COLUMN", help="column that says whose row it is")
    parser.add_argument("--backbone", required=True, metavar="DIR|NAME", help="the base model")
    parser.add_argument("--to", required=True, type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--groups", type=int, metavar="N", help="number of groups (default: by silhouette)")
    parser.add_argument("--truth", metavar="COLUMN", help="column of known groups, to compare with")
    parser.add_argument(
        "--small_rank", type=int, default=2, metavar="R", help="rank of the expert of each value (2)"
    )
    parser.add_argument(
        "--max_rows",
        type=int,
        default=64,
        metavar="N",
        help="rows of each value that experts are judged on (64)",
    )
    parser.add_argument(
        "--no_shared", dest="shared", action="store_false", help="leave out the expert that all groups share"
    )
    parser.add_argument("--resume", action="store_true", help="go on where an earlier call stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    return parser

"""Answer a file of any size shard by shard: the same answers as in one go, and a killed run goes on.

The file is read once from end to end and cut into shards of whole rows, each a range of bytes. A shard is
answered by whoever has the model (`moe_adapt.serving.workers`) and its answers are a file of their own. When
all are there they become the output, in the order of the rows. Shards hold whole batches, so every row sits
in the batch in which one process would have put it, and its answer is the same.

What is done lies beside the output in ``OUT.parts``; the same command goes on with what is missing.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moe_adapt.errors import UserError
from moe_adapt.files import delete, write_file
from moe_adapt.reading import foreign, read_json
from moe_adapt.serving.rows import Scores, answered, batched, json_lines, open_output, table_lines
from moe_adapt.textfiles import cell_reader

__all__ = ["Job", "Shard", "answer_shard", "finish", "prepare"]

PLAN_FILE = "plan.json"
#: Ending -> whether tabs separate.
TABS = {".csv": False, ".tsv": True}


@dataclass(frozen=True)
class Shard:
    """Some rows of a file, one after the other.

    Attributes:
        number: Which one, from zero.
        start: Its first byte.
        end: The byte after its last.
        row: Number of its first row, from zero.
        line: Number of its first line, from one.
    """

    number: int
    start: int
    end: int
    row: int
    line: int


@dataclass(frozen=True)
class Job:
    """What is answered, and where the answers go.

    Attributes:
        source: Folder or name of the model, or of its run.
        rows: The file, an absolute path.
        to: The output, an absolute path.
        base: Its base model, where the adapter does not say.
        checkpoint: Of a run: ``best``, ``last`` or a path.
        batch_size: Rows per forward.
        top: Classes to name.
        shard_rows: Rows of a shard: whole batches.
        heads: Columns of a CSV or TSV file.
    """

    source: str
    rows: str
    to: str
    base: str | None = None
    checkpoint: str = "best"
    batch_size: int = 32
    top: int = 1
    shard_rows: int = 4096
    heads: tuple[str, ...] | None = None

    @property
    def folder(self) -> Path:
        """Where finished shards are."""
        return Path(f"{self.to}.parts")

    def part(self, shard: Shard) -> Path:
        """Return the file of a shard's answers."""
        return self.folder / f"{shard.number:06d}.jsonl"


def prepare(job: Job, overwrite: bool) -> tuple[Job, list[Shard]]:
    """Cut the file into shards, or take up what an earlier run of the same command left.

    Args:
        job: What is to be answered.
        overwrite: Whether an output that is there may be replaced, and other leftovers thrown away.

    Returns:
        The job with the file's columns, and the shards whose answers are missing.

    Raises:
        UserError: If the file cannot be cut, has no rows, or something else is in the way.
    """
    path, to = Path(job.rows), Path(job.to)
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", *TABS):
        raise UserError(f"{path.name}: --workers takes JSONL, CSV or TSV files, which are read row by row.")
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    if to.suffix not in (".jsonl", ".csv"):
        raise UserError(f"--to {to.name}: expected a file that ends in .jsonl or .csv.")
    if to.exists() and not overwrite:
        raise UserError(f"{to} exists already; choose another file or replace it with --overwrite.")
    stat = path.stat()
    words = {**asdict(job), "bytes": stat.st_size, "changed": stat.st_mtime_ns}
    plan = job.folder / PLAN_FILE
    if plan.is_file():
        known = read_json(plan, "the plan of a prediction", f"delete {job.folder}")
        if known.get("words") == json.loads(json.dumps(words)):
            return _taken_up(job, known)
        if not overwrite:
            raise UserError(
                f"{job.folder} has answers of another command or another file: give that command again, "
                "delete the folder, or start anew with --overwrite."
            )
        delete([job.folder])
    heads, shards = _cut(path, job.shard_rows, TABS.get(suffix))
    if not shards:
        raise UserError(f"{path} has no rows.")
    to.parent.mkdir(parents=True, exist_ok=True)
    job.folder.mkdir(exist_ok=True)
    known = {"words": words, "heads": heads, "shards": [asdict(shard) for shard in shards]}
    write_file(plan, json.dumps(known))
    return _taken_up(job, known)


def _taken_up(job: Job, plan: Mapping[str, Any]) -> tuple[Job, list[Shard]]:
    heads = None if plan["heads"] is None else tuple(plan["heads"])
    job = Job(**{**asdict(job), "heads": heads})
    shards = [Shard(**shard) for shard in plan["shards"]]
    return job, [shard for shard in shards if not job.part(shard).is_file()]


def _cut(path: Path, size: int, tabs: bool | None) -> tuple[list[str] | None, list[Shard]]:
    """Return the columns of a table, and shards of `size` rows."""
    with foreign(path, "UTF-8 text", "save it as UTF-8"), path.open("rb") as file:
        ends: Iterator[tuple[Any, int, int]]
        if tabs is None:
            ends = _json_ends(file)
            heads, (at, line) = None, (0, 1)
        else:
            ends = _table_ends(file, tabs)
            first = next(ends, None)
            if first is None:
                return None, []
            heads, at, line = first
        shards: list[Shard] = []
        start, first_line, count, row = at, line, 0, 0
        for _, end, next_line in ends:
            count, at, line = count + 1, end, next_line
            if count == size:
                shards.append(Shard(len(shards), start, at, row, first_line))
                start, first_line, row, count = at, line, row + count, 0
        if count:
            shards.append(Shard(len(shards), start, at, row, first_line))
    return heads, shards


def _json_ends(file: BinaryIO) -> Iterator[tuple[None, int, int]]:
    """Yield, for every line with a row, the byte after it and the number of the next line."""
    at = 0
    for number, line in enumerate(file, start=1):
        at += len(line)
        if line.strip():
            yield None, at, number + 1


def _table_ends(file: BinaryIO, tabs: bool) -> Iterator[tuple[list[str], int, int]]:
    """Yield, for every record, its cells, the byte after it and the number of the next line."""
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for line in file:
            text = line.decode("utf-8-sig" if at == 0 else "utf-8")
            at += len(line)
            yield text

    reader = cell_reader(lines(), tabs)
    for record in reader:
        if record:
            yield record, at, reader.line_num + 1


def answer_shard(model: Any, job: Job, shard: Shard) -> None:
    """Answer the rows of a shard and write its file, whole or not at all.

    Args:
        model: The classifier.
        job: What is answered.
        shard: Which rows.

    Raises:
        UserError: If a row cannot be answered.
    """
    lines, number = [], shard.row
    for batch in batched(_rows(job, shard), job.batch_size):
        lines += [json.dumps(one, ensure_ascii=False) for one in answered(model, batch, number, job.top)]
        number += len(batch)
    write_file(job.part(shard), "\n".join(lines) + "\n")


def _rows(job: Job, shard: Shard) -> Iterator[dict[str, Any]]:
    path = Path(job.rows)
    with foreign(path, "UTF-8 text", "save it as UTF-8"), path.open("rb") as file:
        file.seek(shard.start)
        text = file.read(shard.end - shard.start).decode("utf-8-sig" if shard.start == 0 else "utf-8")
    lines = io.StringIO(text, newline="")
    if job.heads is None:
        return json_lines(lines, path.name, first=shard.line)
    return table_lines(lines, path.name, TABS[path.suffix.lower()], list(job.heads), shard.line)


def finish(job: Job) -> tuple[int, Scores, list[tuple[str, str]]]:
    """Put the answers of all shards into the output, and throw the parts away.

    Args:
        job: What was answered.

    Returns:
        How many rows there are, the scores of those that have labels, and column and value of those that say
        whose they are and that nothing was trained for.
    """
    scores, number = Scores(), 0
    strange: list[tuple[str, str]] = []
    with open_output(job.to, overwrite=True) as write:
        for path in sorted(job.folder.glob("*.jsonl")):
            with path.open(encoding="utf-8") as file:
                for line in file:
                    row, label, prediction, stranger = json.loads(line)
                    write(row)
                    scores.add(label, prediction)
                    strange += [(stranger[0], stranger[1])] if stranger else []
                    number += 1
    delete([job.folder])
    return number, scores, strange

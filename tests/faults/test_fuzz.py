"""Files with random damage: each is read, or refused in one sentence; nothing fails later.

A thousand damaged files of every kind run with ``-m slow``; the suite has a sample.
"""

import json
import random

import pytest
import torch
from safetensors.torch import save

from moe_adapt.data.tables import load_table
from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace import RoutingTrace, SiteTrace, TokenTable, pack_bits
from moe_adapt.evaluation.trace.file import load_trace, save_trace
from moe_adapt.evaluation.trace.metrics import trace_metrics
from moe_adapt.hub.pool import AdapterPool
from moe_adapt.reading import read_json, read_tensors, read_yaml
from moe_adapt.training.checkpoint import read_checkpoint


def trace(folder):
    selected = torch.eye(3, dtype=torch.bool)[torch.arange(12) % 3]
    site = SiteTrace(3, 0, pack_bits(selected), torch.ones(12).half(), (torch.arange(12) % 3).short())
    table = TokenTable(torch.arange(4).repeat_interleave(3).int(), torch.arange(3).repeat(4).int())
    found = RoutingTrace({"layer": site}, [table], torch.arange(4), torch.tensor([0, 1, 0, 1]), ["a", "b"])
    return save_trace(found, folder / "trace.safetensors")


def pool(folder):
    made = AdapterPool("encoder", 2)
    for uid in ("one", "two"):
        made.add(uid, f"org/{uid}", torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    made.save(folder / "pool")
    return folder / "pool" / "pool.json"


def opened_pool(path):
    found = AdapterPool.load(path.parent)
    found.route(torch.ones(2, 8)).best(1)


def written(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def checkpoint(folder):
    torch.save({"state_dict": {"a": torch.arange(40.0)}, "epoch": 1}, folder / "last.ckpt")
    return folder / "last.ckpt"


JSON = json.dumps({"a": [1, {"b": "text"}], "c": None}).encode()
LINES = b"".join(json.dumps({"text": f"row {i}", "label": i}).encode() + b"\n" for i in range(5))
#: Kind -> writes a file, reads it and uses what it holds.
KINDS = {
    "json": (written("a.json", JSON), read_json),
    "yaml": (written("a.yaml", b"model:\n  a: &x [1, 2]\n  b: *x\n  c: {d: text}\n"), read_yaml),
    "safetensors": (written("a.safetensors", save({"a": torch.arange(6.0).reshape(2, 3)})), read_tensors),
    "checkpoint": (checkpoint, read_checkpoint),
    "trace": (trace, lambda path: trace_metrics(load_trace(path))),
    "pool": (pool, opened_pool),
    "jsonl": (written("a.jsonl", LINES), lambda path: load_table(str(path)).to_list()),
    "csv": (
        written("a.csv", b'text,label\n"a, ""b""",1\nc,2\n'),
        lambda path: load_table(str(path)).to_list(),
    ),
    "tsv": (written("a.tsv", b"text\tlabel\na\t1\nb\t2\n"), lambda path: load_table(str(path)).to_list()),
}


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return bytes after one to three changes: flipped, cut off, doubled, or replaced."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place:place] = bytes(changed[place : place + draw.randrange(40)])
        elif kind == 3:
            changed[place:place] = draw.choice(
                [b"\x00", b"-1", b"1e999", b"null", b"[" * 50, b"\xff\xfe", b'"', b"9" * 30]
            )
        elif changed:
            del changed[place % len(changed) : place % len(changed) + draw.randrange(20)]
    return bytes(changed)


def fuzz(kind: str, folder, count: int) -> int:
    """Damage a file `count` times; return how often it was refused."""
    write, use = KINDS[kind]
    path = write(folder)
    whole, draw, refused = path.read_bytes(), random.Random(kind), 0
    use(path)
    for _ in range(count):
        path.write_bytes(damaged(whole, draw))
        try:
            use(path)
        except UserError as error:
            assert "\n" not in str(error) and path.stem.split(".")[0] in str(error), error
            refused += 1
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_some_damage(kind, tmp_path):
    assert fuzz(kind, tmp_path, 60) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage(kind, tmp_path):
    assert fuzz(kind, tmp_path, 1_000) > 100

"""Files with random damage: each is read, or refused in one sentence; nothing fails later.

A thousand damaged files of every kind run with ``-m slow``; the suite has a sample.
"""

import random
import signal
from contextlib import contextmanager

import pytest

from moe_adapt.errors import UserError
from tests.faults.kinds import KINDS

#: Seconds of the processor after which an input counts as one that hangs; none needs one.
PATIENCE = 60


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


#: Kinds whose models are compiled or trained before they answer, which takes longer than the sample may.
LONG = {"driftmoe_forged", "driftmoe_tensors", "stream_checkpoint"}


@contextmanager
def at_once():
    """Fail where an input hangs."""

    def fail(number, frame):
        raise AssertionError(f"an input took more than {PATIENCE} seconds")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fuzz(kind: str, folder, count: int) -> dict[str, int]:
    """Damage a file `count` times; return how often it was refused and read.

    Whatever else happens, a traceback, a hang, or a failure after reading, ends the test.
    """
    write, use = KINDS[kind]
    path = write(folder)
    kept = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    whole, draw, found = kept[path], random.Random(kind), {"refused": 0, "read": 0}
    use(path)
    for _ in range(count):
        for file, content in kept.items():
            file.write_bytes(content)
        path.write_bytes(damaged(whole, draw))
        try:
            with at_once():
                use(path)
            found["read"] += 1
        except UserError as error:
            assert "\n" not in str(error), error
            found["refused"] += 1
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LONG])
def test_some_damage(kind, tmp_path):
    found = fuzz(kind, tmp_path, 12)
    assert sum(found.values()) == 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage(kind, tmp_path):
    assert sum(fuzz(kind, tmp_path, 1_000).values()) == 1_000

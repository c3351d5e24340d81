"""``moe-adapt pool add|remove|list|route``: which of several published adapters suits a text?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.texts import read_texts
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.files import exclusively, settle

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pool"]

ACTIONS = ("add", "remove", "list", "route")


def pool(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``pool``.

    Raises:
        UserError: For a mistake in the arguments, or a pool, file or model that is not there.
    """
    if not argv or argv[0] not in ACTIONS:
        if argv and argv[0] in ("-h", "--help"):
            print("usage: moe-adapt pool add|remove|list|route POOL ... (each explains itself with --help)")
            return
        hint = did_you_mean(argv[0], ACTIONS) if argv else ""
        raise UserError(f"moe-adapt pool needs one of {', '.join(ACTIONS)}.{hint}")
    {"add": _add, "remove": _remove, "list": _list, "route": _route}[argv[0]](argv[1:])


def _add(argv: Sequence[str]) -> None:
    parser = CommandParser("pool add", "Add an adapter to a pool; the first one makes the pool.")
    parser.add_argument("pool", type=Path, metavar="POOL", help="folder of the pool")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter, or user/name on the Hub")
    parser.add_argument(
        "--examples",
        type=Path,
        required=True,
        metavar="FILE",
        help="texts that it is good at: one per line, or JSONL rows with a text",
    )
    parser.add_argument("--uid", help="its name in the pool (default: the last part of ADAPTER)")
    parser.add_argument("--note", default="", help="what it is for")
    parser.add_argument(
        "--encoder", metavar="DIR|NAME", help="model that embeds texts; needed for the first adapter"
    )
    parser.add_argument(
        "--centroids",
        type=int,
        default=1,
        metavar="K",
        help="centroids per adapter of a new pool (default: 1)",
    )
    options = parser.parse(argv)
    texts = read_texts(options.examples)
    _check_adapter(options.adapter)

    from moe_adapt.hub.pool import AdapterPool

    uid = options.uid or options.adapter.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    with exclusively(options.pool):
        settle(options.pool)
        if (options.pool / "pool.json").is_file():
            found = AdapterPool.load(options.pool)
            if options.encoder and options.encoder != found.encoder:
                raise UserError(f"the pool's encoder is {found.encoder!r}; leave --encoder out.")
        elif options.encoder:
            found = AdapterPool(options.encoder, options.centroids)
        else:
            raise UserError("a new pool needs --encoder, the model that embeds texts.")
        found.add(uid, options.adapter, _embed(found.encoder, texts), options.note)
        found.save(options.pool)
    print(f"{uid}: {len(texts)} examples; the pool has {len(found.members)} adapters")


def _check_adapter(source: str) -> None:
    """Make sure that an adapter is there: a folder with its configuration, or a name on the Hub.

    Raises:
        UserError: If it is neither.
    """
    path = Path(source.partition("@")[0]).expanduser()
    if path.is_dir():
        if not (path / "adapter_config.json").is_file():
            raise UserError(f"{path} holds no adapter: it has no adapter_config.json.")
    elif source.startswith((".", "/", "~")) or source.count("/") < 1:
        raise UserError(f"there is no adapter {source}; give its folder, or user/name on the Hub.")


def _remove(argv: Sequence[str]) -> None:
    parser = CommandParser("pool remove", "Remove an adapter from a pool.")
    parser.add_argument("pool", type=Path, metavar="POOL", help="folder of the pool")
    parser.add_argument("uid", metavar="UID", help="the adapter's name")
    options = parser.parse(argv)

    from moe_adapt.hub.pool import AdapterPool

    with exclusively(options.pool):
        found = AdapterPool.load(options.pool)
        found.remove(options.uid)
        found.save(options.pool)
    print(f"removed {options.uid}; the pool has {len(found.members)} adapters")


def _list(argv: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    parser = CommandParser("pool list", "Show the adapters of a pool.")
    parser.add_argument("pool", type=Path, metavar="POOL", help="folder of the pool")
    options = parser.parse(argv)

    from moe_adapt.hub.pool import AdapterPool

    found = AdapterPool.load(options.pool)
    table = Table("adapter", "source", "examples", "gates", "note", title=f"encoder {found.encoder}")
    for uid, member in found.members.items():
        gates = f"{len(member.gates)} layers" if member.gates else "none"
        table.add_row(uid, member.source, str(member.examples), gates, member.note)
    Console().print(table)


def _route(argv: Sequence[str]) -> None:
    parser = CommandParser("pool route", "Say which adapters suit texts; one JSON object per text.")
    parser.add_argument("pool", type=Path, metavar="POOL", help="folder of the pool")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to route")
    parser.add_argument("--file", type=Path, help="texts in a file: one per line, or JSONL rows with a text")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="adapters per text (default: 1)")
    options = parser.parse(argv)
    if options.top < 1:
        raise UserError(f"--top must be at least 1, got {options.top}.")
    texts = options.texts + (read_texts(options.file) if options.file else [])
    if not texts:
        raise UserError("moe-adapt pool route needs texts, or --file FILE.")

    from moe_adapt.hub.pool import AdapterPool

    found = AdapterPool.load(options.pool)
    plan = found.route(_embed(found.encoder, texts))
    for text, best in zip(texts, plan.best(options.top), strict=True):
        scores = [
            {"adapter": uid, "source": found.members[uid].source, "score": round(score, 4)}
            for uid, score in best
        ]
        print(json.dumps({"text": text, "adapters": scores}, ensure_ascii=False))


def _embed(encoder: str, texts: Sequence[str], batch_size: int = 32) -> "Tensor":
    """Return the embeddings of texts, [Q, d]."""
    import torch
    from transformers import AutoTokenizer

    from moe_adapt.backbones import TextEncoder
    from moe_adapt.data.tokenizer import pad_on_the_right

    model = TextEncoder(encoder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
    pad_on_the_right(tokenizer, encoder)
    longest = min(tokenizer.model_max_length, getattr(model.model.config, "max_position_embeddings", 512))
    parts = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        with torch.inference_mode():
            parts.append(model(batch))
    return torch.cat(parts).clone()

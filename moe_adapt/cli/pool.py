"""``moe-adapt pool ACTION``: which of several published adapters suits a text?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.texts import LABELS, RESPONSES, read_examples, read_texts
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.files import exclusively, settle

__all__ = ["pool"]

ACTIONS = ("add", "remove", "list", "route", "evaluate", "budget", "gate")
ROUTERS = ("lda", "prototype", "trained")


def pool(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``pool``.

    Raises:
        UserError: For a mistake in the arguments, or a pool, file or model that is not there.
    """
    if not argv or argv[0] not in ACTIONS:
        if argv and argv[0] in ("-h", "--help"):
            print(f"usage: moe-adapt pool {'|'.join(ACTIONS)} POOL ... (each explains itself with --help)")
            return
        hint = did_you_mean(argv[0], ACTIONS) if argv else ""
        raise UserError(f"moe-adapt pool needs one of {', '.join(ACTIONS)}.{hint}")
    actions = {"add": _add, "remove": _remove, "list": _list}
    actions |= {"route": _route, "evaluate": _evaluate, "budget": _budget, "gate": _gate}
    actions[argv[0]](argv[1:])


def _parser(action: str, purpose: str) -> CommandParser:
    """Return the parser of an action, with the pool as its first argument."""
    parser = CommandParser(f"pool {action}", purpose)
    parser.add_argument("pool", type=Path, metavar="POOL", help="folder of the pool")
    return parser


def _add(argv: Sequence[str]) -> None:
    parser = _parser("add", "Add an adapter to a pool; the first one makes the pool.")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter, or user/name on the Hub")
    parser.add_argument(
        "--examples",
        type=Path,
        required=True,
        metavar="FILE",
        help="texts that it is good at: one per line, or a table (JSONL, CSV, Parquet) with a text; lda "
        "gives the classes of a label, category or answer means of their own",
    )
    parser.add_argument(
        "--ignore_labels", action="store_true", help="lda: one mean, whatever labels there are"
    )
    parser.add_argument("--uid", help="its name in the pool (default: the last part of ADAPTER)")
    parser.add_argument("--note", default="", help="what it is for")
    parser.add_argument(
        "--encoder", metavar="DIR|NAME", help="a new pool: sentence encoder whose embedding is compared"
    )
    parser.add_argument(
        "--backbone",
        metavar="DIR|NAME",
        help="a new pool: the adapters' base, of which a middle block is read",
    )
    parser.add_argument(
        "--router", choices=ROUTERS, help="how to choose (lda with --backbone, prototype with --encoder)"
    )
    parser.add_argument("--layer", type=int, metavar="N", help="blocks of --backbone to read after (middle)")
    parser.add_argument(
        "--centroids",
        type=int,
        default=1,
        metavar="K",
        help="centroids per adapter of a new pool (default: 1)",
    )
    options = parser.parse(argv)
    examples = read_examples(options.examples, () if options.ignore_labels else LABELS)
    _check_adapter(options.adapter)

    from moe_adapt.hub.composition.summary import examples_seen, examples_told
    from moe_adapt.hub.composition.tokens import asked, labels_of
    from moe_adapt.hub.pool import AdapterPool
    from moe_adapt.hub.pool.features import Embedder, middle_block

    texts, labels = [asked(example) for example in examples], labels_of(examples)
    uid = options.uid or options.adapter.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    with exclusively(options.pool):
        settle(options.pool)
        if (options.pool / "pool.json").is_file():
            found = AdapterPool.load(options.pool)
            given = options.encoder or options.backbone
            if given and given != found.encoder:
                raise UserError(f"the pool's model is {found.encoder!r}; leave --encoder and --backbone out.")
        elif bool(options.encoder) == bool(options.backbone):
            raise UserError("a new pool needs --encoder, a sentence encoder, or --backbone, the base model.")
        elif options.encoder:
            found = AdapterPool(options.encoder, options.centroids, options.router or "prototype")
        else:
            block = options.layer or middle_block(options.backbone)
            router = options.router or "lda"
            found = AdapterPool(options.backbone, options.centroids, router, block)
        features = Embedder(found.encoder, found.block)(texts)
        found.add(uid, options.adapter, features, options.note, labels=labels)
        found.save(options.pool)
    seen = examples_seen(getattr(found.router, "statistics", None), uid, labels)
    print(f"{uid}: {examples_told(seen)}; the pool has {len(found.members)} adapters")


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
    parser = _parser("remove", "Remove an adapter from a pool.")
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

    parser = _parser("list", "Show the adapters of a pool.")
    options = parser.parse(argv)

    from moe_adapt.hub.pool import AdapterPool

    found = AdapterPool.load(options.pool)
    table = Table("adapter", "source", "examples", "gates", "note", title=_title(found))
    for uid, member in found.members.items():
        gates = f"{len(member.gates)} layers" if member.gates else "none"
        table.add_row(uid, member.source, str(member.examples), gates, member.note)
    Console().print(table)


def _title(found: Any) -> str:
    name = getattr(found.router, "name", "prototype")
    where = "final embedding" if found.block is None else f"block {found.block}"
    return f"{name} on the {where} of {found.encoder}"


def _route(argv: Sequence[str]) -> None:
    parser = _parser("route", "Say which adapters suit texts; one JSON object per text.")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to route")
    parser.add_argument(
        "--file",
        type=Path,
        help="texts in a file: one per line, or a table (JSONL, CSV, Parquet) with a text",
    )
    parser.add_argument("--top", type=int, default=1, metavar="N", help="adapters per text (default: 1)")
    parser.add_argument(
        "--margin", type=float, default=0.0, metavar="M", help="also those whose score is at most M less"
    )
    _add_least(parser)
    options = parser.parse(argv)
    if options.top < 1 or options.margin < 0:
        raise UserError("--top must be at least 1, and --margin at least 0.")
    texts = options.texts + (read_texts(options.file) if options.file else [])
    if not texts:
        raise UserError("moe-adapt pool route needs texts, or --file FILE.")

    from moe_adapt.hub.pool import AdapterPool
    from moe_adapt.hub.pool.features import Embedder

    found = AdapterPool.load(options.pool)
    plan = found.route(Embedder(found.encoder, found.block)(texts))
    most = max(options.top, len(plan.uids) if options.margin and options.top == 1 else 1)
    suiting = plan.suiting(most, options.margin, options.least)
    for text, best in zip(texts, suiting, strict=True):
        scores = [
            {"adapter": uid, "source": found.members[uid].source, "score": round(score, 4)}
            for uid, score in best
        ]
        print(json.dumps({"text": text, "adapters": scores}, ensure_ascii=False))


def _add_least(parser: CommandParser) -> None:
    parser.add_argument(
        "--least", type=float, metavar="SCORE", help="below this score no adapter is taken: the base answers"
    )


def _evaluate(argv: Sequence[str]) -> None:
    parser = _parser("evaluate", "Say how many texts find the adapter that they are for.")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="UID=FILE",
        help="texts of adapters, that it was not made with",
    )
    parser.add_argument("--foreign", type=Path, metavar="FILE", help="texts that no adapter is for")
    parser.add_argument("--to", type=Path, metavar="FILE", help="JSON file to write")
    _add_least(parser)
    options = parser.parse(argv)
    pairs = [word.partition("=") for word in options.data]
    wrong = next((word for word, pair in zip(options.data, pairs, strict=True) if not pair[2]), None)
    if wrong is not None:
        raise UserError(f"--data takes UID=FILE, got {wrong!r}.")
    texts = {uid: read_texts(Path(path)) for uid, _, path in pairs}
    foreign = read_texts(options.foreign) if options.foreign else []

    from moe_adapt.hub.pool import AdapterPool
    from moe_adapt.hub.pool.evaluate import evaluate_pool
    from moe_adapt.hub.pool.features import Embedder

    found = AdapterPool.load(options.pool)
    result = evaluate_pool(found, texts, Embedder(found.encoder, found.block), foreign, options.least)
    print(result)
    if options.to is not None:
        result.save(options.to)


def _budget(argv: Sequence[str]) -> None:
    parser = _parser("budget", "Say which adapters to keep under a budget, and who answers for the others.")
    parser.add_argument("--megabytes", type=float, required=True, metavar="MB", help="the most to keep")
    parser.add_argument(
        "--size", nargs="+", default=[], metavar="UID=MB", help="sizes of adapters that are not on this disk"
    )
    options = parser.parse(argv)
    given = {}
    for word in options.size:
        uid, _, size = word.partition("=")
        try:
            given[uid] = float(size)
        except ValueError:
            raise UserError(f"--size takes UID=MB, got {word!r}.") from None

    from moe_adapt.hub.pool import AdapterPool
    from moe_adapt.hub.pool.budget import sizes_of, solve, values_of

    found = AdapterPool.load(options.pool)
    unknown = next((uid for uid in given if uid not in found.members), None)
    if unknown is not None:
        raise UserError(f"the pool has no adapter {unknown!r}.{did_you_mean(unknown, found.members)}")
    sizes = sizes_of(found, given)
    uids, values = values_of(found.router)
    table = solve(uids, values, [sizes[uid] for uid in uids], options.megabytes)
    for uid, answer in table.answers.items():
        print(json.dumps({"adapter": uid, "answered_by": answer, "kept": uid in table.kept}))
    print(
        f"{len(table.kept)} of {len(uids)} adapters kept; mean score {table.value:.3f} of {table.best:.3f}; "
        f"savings {table.savings:.1%}"
    )


def _gate(argv: Sequence[str]) -> None:
    parser = _parser("gate", "Train the gates of an adapter, for routing inside the model.")
    parser.add_argument("uid", metavar="UID", help="the adapter's name")
    parser.add_argument(
        "--examples",
        type=Path,
        required=True,
        metavar="FILE",
        help="texts that it is good at; of JSONL rows with a response that is learned",
    )
    parser.add_argument(
        "--backbone", metavar="DIR|NAME", help="the language model (default: the pool's model)"
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="training steps (100)")
    options = parser.parse(argv)
    texts = read_examples(options.examples, RESPONSES)

    from moe_adapt.hub.composition.base import longest, open_base, open_tokenizer
    from moe_adapt.hub.composition.tokens import TokenRouter, train_text_gate
    from moe_adapt.hub.pool import AdapterPool

    router = TokenRouter.of({"name": "phatgoose", "steps": options.steps})
    assert router is not None
    with exclusively(options.pool):
        found = AdapterPool.load(options.pool)
        if options.uid not in found.members:
            raise UserError(
                f"the pool has no adapter {options.uid!r}.{did_you_mean(options.uid, found.members)}"
            )
        member, name = found.members[options.uid], options.backbone or found.encoder
        base, tokenizer = open_base(name, "CAUSAL_LM"), open_tokenizer(name)
        size = longest(tokenizer, base)
        member.gates = train_text_gate(router, base, tokenizer, member.source, texts, size)
        found.save(options.pool)
    print(f"{options.uid}: gates for {len(member.gates)} layers")

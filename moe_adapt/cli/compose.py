"""``moe-adapt compose``: many LoRAs in one adapter, chosen per input; add to it, remove, evaluate."""

from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.cli.texts import LABELS, RESPONSES, read_examples
from moe_adapt.errors import UserError

__all__ = ["compose"]

ROUTERS = ("lda", "prototype", "trained", "arrow", "phatgoose", "glider", "none")
#: Routers whose gates learn from prompts with responses.
GATED = ("phatgoose", "glider")


def compose(argv: Sequence[str]) -> None:
    """Run the command.

    Args:
        argv: The arguments after ``compose``.

    Raises:
        UserError: For a mistake in the arguments, or adapters, texts or models that cannot be used.
    """
    options = _parser().parse(argv)
    actions = [name for name in ("add", "remove", "evaluate") if getattr(options, name) is not None]
    if len(actions) > 1:
        raise UserError(f"give one of --{' and --'.join(actions)} at a time.")
    {"add": _add, "remove": _remove, "evaluate": _evaluate}.get(actions[0] if actions else "", _build)(
        options
    )


def _build(options: Namespace) -> None:
    if not options.adapters or options.to is None or options.backbone is None:
        raise UserError(
            "moe-adapt compose needs adapters, --backbone and --to: moe-adapt compose bank=lora/bank "
            "news=lora/news --examples bank=bank.txt news=news.txt --backbone MODEL --to DIR."
        )
    adapters = dict(_pair(word) for word in options.adapters)
    if len(adapters) < len(options.adapters):
        names = [_pair(word)[0] for word in options.adapters]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two adapters are called {twice!r}; name them yourself: NAME=FOLDER.")
    router: Any = None if options.router == "none" else options.router
    columns = _columns(options.router, options)
    files = dict(_named(word, "--examples") for word in options.examples or ())
    named = [_named(word, "--gates") for word in options.gates or ()]
    if router not in (None, "arrow") and not files and not named:
        raise UserError("give texts that each adapter is for: --examples NAME=FILE ..., or --router none.")
    examples = {uid: read_examples(Path(path), columns) for uid, path in files.items()} or None

    from moe_adapt.hub.composition import compose as build
    from moe_adapt.hub.gates import read_gates

    report = build(
        adapters,
        examples,
        options.to,
        backbone=options.backbone,
        router=router,
        layer=options.layer,
        k=0 if options.soft else options.k,
        abstain=options.abstain,
        max_length=options.max_length,
        overwrite=options.overwrite,
        gates={uid: read_gates(Path(path)) for uid, path in named} or None,
    )
    print(report)


def _add(options: Namespace) -> None:
    folder, (uid, source) = _folder(options), _pair(options.add)
    words = options.examples or []

    from moe_adapt.hub.composition import add_adapter, router_of

    router = router_of(folder)
    if len(words) != 1 and router not in (None, "arrow"):
        raise UserError("--add needs --examples FILE, with texts that the adapter is for.")
    columns = _columns(router, options)
    texts = read_examples(Path(words[0].rpartition("=")[2]), columns) if words else []

    print(add_adapter(folder, source, texts, uid=uid, backbone=options.backbone))


def _remove(options: Namespace) -> None:
    folder = _folder(options)

    from moe_adapt.hub.composition import remove_adapter

    print(remove_adapter(folder, options.remove))


def _evaluate(options: Namespace) -> None:
    if not options.data:
        raise UserError("--evaluate needs --data NAME=FILE ..., questions with answers of each expert.")
    data = dict(_named(word, "--data") for word in options.data)
    folder = Path(options.evaluate)

    from moe_adapt.evaluation.plots import plot_composition
    from moe_adapt.hub.composition import evaluate

    found = evaluate(
        folder, data, backbone=options.backbone, say=lambda text: print(f"... {text}", flush=True)
    )
    to = Path(options.to) if options.to else folder.with_name(f"{folder.name}-evaluation")
    found.save(to)
    if find_spec("matplotlib") is not None:
        plot_composition(found.accuracy, found.routing, found.columns, to / "evaluation.png")
    print(f"{found}\nreport: {to / 'evaluation.html'}")


def _columns(router: str | None, options: Namespace) -> tuple[str, ...]:
    """Return the columns of examples that a router reads beside the text."""
    if router in GATED:
        return RESPONSES
    return LABELS if router == "lda" and not options.ignore_labels else ()


def _folder(options: Namespace) -> Path:
    if len(options.adapters) != 1:
        raise UserError("give the folder of one composed adapter before --add or --remove.")
    return Path(options.adapters[0])


def _pair(word: str) -> tuple[str, str]:
    """Return name and source of ``NAME=SOURCE``, or of a source that names itself."""
    name, equals, source = word.partition("=")
    if equals and name and "/" not in name:
        return name, source
    return word.split("@")[0].rstrip("/").rsplit("/", 1)[-1], word


def _named(word: str, option: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    if not equals or not name or not path:
        raise UserError(f"{option} takes NAME=FILE, got {word!r}.")
    return name, path


def _parser() -> CommandParser:
    parser = CommandParser(
        "compose",
        "Put LoRA adapters that were trained apart into one, which chooses among them for every input. "
        "Nothing is trained but statistics of a few examples.",
    )
    parser.add_argument(
        "adapters",
        nargs="*",
        metavar="[NAME=]ADAPTER",
        help="LoRA adapters: folders or names on the Hub; with --add or --remove the composed adapter",
    )
    parser.add_argument(
        "--examples",
        nargs="+",
        metavar="NAME=FILE",
        help="texts that an adapter is for: one per line, or a table (JSONL, CSV, Parquet) with a text or "
        "prompt (--add: FILE); lda gives the classes of a label, category or answer means of their own; "
        "phatgoose and glider learn the response, answer or output of a row",
    )
    parser.add_argument(
        "--ignore_labels",
        action="store_true",
        help="lda: one mean per adapter, whatever labels examples have",
    )
    parser.add_argument("--backbone", metavar="DIR|NAME", help="the base model")
    parser.add_argument("--to", metavar="DIR", help="folder to write")
    parser.add_argument(
        "--router",
        choices=ROUTERS,
        default="lda",
        help="how to choose (lda); arrow, phatgoose and glider choose for every token and layer",
    )
    parser.add_argument(
        "--gates",
        nargs="+",
        metavar="NAME=FILE",
        help="phatgoose, glider: gates that were trained before (safetensors)",
    )
    parser.add_argument(
        "--layer", default="auto", metavar="auto|N", help="after how many blocks the router reads (auto)"
    )
    parser.add_argument("--k", type=int, default=1, help="adapters per input (1)")
    parser.add_argument("--soft", action="store_true", help="mix all adapters by their probabilities")
    parser.add_argument(
        "--abstain",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of an adapter's own texts that may be left to the base as foreign; 0: never (0.01)",
    )
    parser.add_argument("--max_length", type=int, metavar="N", help="tokens read of an example")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    parser.add_argument("--add", metavar="[NAME=]ADAPTER", help="add an adapter to a composed one")
    parser.add_argument("--remove", metavar="NAME", help="remove an adapter from a composed one")
    parser.add_argument("--evaluate", metavar="DIR", help="evaluate a composed adapter")
    parser.add_argument("--data", nargs="+", metavar="NAME=FILE", help="--evaluate: questions with answers")
    return parser

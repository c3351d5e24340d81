"""``moe-adapt serve RUN_OR_ADAPTER ...|POOL``: answer over HTTP."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.cli.arguments import CommandParser
from moe_adapt.errors import UserError
from moe_adapt.extras import require

__all__ = ["open_all", "serve"]


def serve(argv: Sequence[str]) -> None:
    """Run the command until it is interrupted.

    Args:
        argv: The arguments after ``serve``.

    Raises:
        UserError: For a mistake in the arguments, or a model that cannot be opened.
    """
    options = _parser().parse(argv)
    for name in ("max_batch", "max_waiting", "max_new_tokens", "max_body", "max_rows"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}.")
    if options.max_seconds <= 0 or not 0 <= options.port < 65536:
        raise UserError("--max_seconds must be above 0 and --port from 0 to 65535.")
    require("moe-adapt serve", "fastapi", "uvicorn", "httpx2")
    if options.upstream is not None:
        _gateway(options)
        return

    import uvicorn

    from moe_adapt.serving.http import Engine, Limits, make_app

    model = open_all(options.sources, options.base)
    engine = Engine(model, options.max_batch, options.max_waiting)
    limits = Limits(options.max_body, options.max_seconds, options.max_new_tokens, options.max_rows)
    print(f"models: {', '.join(model.adapters)}", flush=True)
    print(f"http://{options.host}:{options.port}  (a page to try it; Ctrl-C ends)", flush=True)
    uvicorn.run(make_app(engine, limits), host=options.host, port=options.port, log_level="warning")


def _gateway(options: Namespace) -> None:
    """Decide here, and let another engine answer."""
    import uvicorn

    from moe_adapt.hub.composition.choosing import ExpertChoice
    from moe_adapt.serving.http.gateway import Gateway, make_gateway, upstream_models

    if len(options.sources) != 1:
        raise UserError("--upstream takes one composed adapter, whose router decides.")
    upstream = options.upstream.rstrip("/")
    upstream = upstream if upstream.endswith("/v1") else f"{upstream}/v1"
    name, equals, folder = options.sources[0].rpartition("=")
    models = upstream_models(upstream, os.environ.get("OPENAI_API_KEY"))
    choose = ExpertChoice(folder, options.base)
    lost = [expert for expert in choose.experts if expert not in models]
    if lost:
        raise UserError(
            f"the engine at {upstream} has no model {', '.join(map(repr, lost))}: load the experts under "
            f"their names. `moe-adapt export {folder} --form experts --to DIR` writes them and prints the "
            "command."
        )
    others = [model for model in models if model not in choose.experts]
    base = options.upstream_base or next(iter(others), None)
    if base is None:
        raise UserError(
            "the engine does not list its base model: say what it is called with --upstream_base."
        )
    gateway = Gateway(
        upstream,
        name if equals else Path(folder).name,
        list(dict.fromkeys([*models, base])),
        base,
        choose,
        options.max_body,
        options.max_seconds,
    )
    if gateway.name in models:
        raise UserError(f"the engine has a model {gateway.name!r} already: name the gateway's NAME={folder}.")
    print(
        f"{gateway.name} chooses among {', '.join(choose.experts)}, else {base}; {upstream} answers",
        flush=True,
    )
    print(f"http://{options.host}:{options.port}/v1  (Ctrl-C ends)", flush=True)
    uvicorn.run(make_gateway(gateway), host=options.host, port=options.port, log_level="warning")


def open_all(sources: Sequence[str], base: str | None) -> Any:
    """Open a run, an adapter, several adapters over one base, or the adapters of a pool.

    Args:
        sources: Their folders or names; an adapter may be named as ``NAME=FOLDER``.
        base: The base model, where the adapters do not say where it is.

    Raises:
        UserError: If one cannot be opened, or they do not belong together.
    """
    from moe_adapt.serving.opening import open_adapters, open_model

    pools = [source for source in sources if (Path(source) / "pool.json").is_file()]
    named: dict[str, str] = {}
    if pools:
        if len(sources) > 1:
            raise UserError("give one pool, or adapters; not both.")
        from moe_adapt.hub.pool import AdapterPool

        named = {uid: member.source for uid, member in AdapterPool.load(pools[0]).members.items()}
        if not named:
            raise UserError(f"the pool {pools[0]} is empty; add an adapter first.")
    for source in [] if pools else sources:
        name, equals, folder = source.partition("=")
        folder = folder if equals else source
        name = name if equals else Path(source).name
        if name in named:
            raise UserError(f"two adapters are called {name!r}: name one of them as NAME={folder}.")
        named[name] = folder
    if len(named) == 1:
        ((name, source),) = named.items()
        return open_model(source, base, name=name)
    return open_adapters(named, base)


def _parser() -> CommandParser:
    parser = CommandParser(
        "serve", "Answer over HTTP: OpenAI's chat completions, /v1/models, /classify, a page to try it."
    )
    parser.add_argument(
        "sources", nargs="+", metavar="RUN_OR_ADAPTER|POOL", help="what to serve; NAME=DIR names it"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    parser.add_argument(
        "--base", metavar="DIR", help="the base model, where an adapter does not say where it is"
    )
    parser.add_argument(
        "--upstream",
        metavar="URL",
        help="decide here with a composed adapter, and let an OpenAI-compatible engine that has its experts "
        "as LoRAs answer (a key for it: OPENAI_API_KEY)",
    )
    parser.add_argument("--upstream_base", metavar="NAME", help="what that engine calls the base model")
    parser.add_argument(
        "--max_batch", type=int, default=16, metavar="N", help="answers at a time (default: 16)"
    )
    parser.add_argument(
        "--max_waiting", type=int, default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    parser.add_argument("--max_body", type=int, default=1_000_000, metavar="BYTES", help="size of a request")
    parser.add_argument("--max_seconds", type=float, default=120.0, metavar="S", help="time of a request")
    parser.add_argument("--max_new_tokens", type=int, default=512, metavar="N", help="tokens of an answer")
    parser.add_argument("--max_rows", type=int, default=256, metavar="N", help="rows of a classification")
    return parser

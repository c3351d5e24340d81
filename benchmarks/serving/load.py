"""A load test of ``moe-adapt serve``: many clients, mixed adapters, aborted requests, bad bodies; then speed.

The model is a small Llama of random weights with a byte-level tokenizer and four LoRA adapters: how long an
answer takes does not depend on what the weights know. The server runs as users run it, under uvicorn on the
loopback. Fifty clients ask at the same time. Of their requests some stream, some are left after the first
piece, some are too large, some are no JSON. Every answer is compared with that of the same request alone.
What is refused has to be refused as OpenAI's protocol says, and is asked again where it was 429.

Afterwards the same ordinary requests run once with all adapters mixed and once adapter after adapter; both
orders take turns. Times are the processor time of server and clients, which others disturb least.

    python benchmarks/serving/load.py --out benchmarks/results/serving_load.json
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from moe_adapt.hub.card import About
from moe_adapt.hub.export import export_model
from moe_adapt.manifest import collect
from moe_adapt.serving.http import Engine, Limits, make_app
from moe_adapt.serving.http.background import BackgroundServer
from moe_adapt.serving.opening import open_adapters
from moe_adapt.tuner import RoutedLoraConfig

CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ADAPTERS = ("billing", "travel", "sport", "law")
TOKENS = 24
BODY = 20_000


def prepare(folder: Path) -> dict[str, str]:
    """Write base, tokenizer and adapters; return the adapters' folders by name."""
    symbols = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    answering = {
        "task": "text-generation",
        "prompt": None,
        "response": "",
        "chat": True,
        "system": None,
        "max_length": 512,
        "tokenizer": str(folder / "base"),
        "module": "CausalLM",
        "base": {"backbone": "PATH_OF/base"},
    }
    for seed, name in enumerate(ADAPTERS):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        settings = RoutedLoraConfig(method="top_k", num_experts=4, r=4, target_modules="ffn")
        model = peft.get_peft_model(base, settings)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        export_model(model.eval(), folder / name, about=About(answering=answering))
    return {name: str(folder / name) for name in ADAPTERS}


class Server(BackgroundServer):
    """The application over an engine."""

    def __init__(self, model: Any) -> None:
        self.engine = Engine(model, max_batch=16, max_waiting=32)
        super().__init__(make_app(self.engine, Limits(BODY, 300.0, TOKENS, 64)))

    def close(self) -> None:
        """Stop both threads."""
        super().close()
        self.engine.close()


def body_of(adapter: str, number: int, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number} " + "word " * (number % 5)}]
    return {"model": adapter, "messages": messages, "temperature": 0, "max_tokens": TOKENS, **options}


async def ask(client: Any, body: dict[str, Any], seen: Counter) -> str:
    """Return an answer's text; ask again where the server is busy."""
    while True:
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            return answer.json()["choices"][0]["message"]["content"]
        if answer.status_code != 429 or answer.json()["error"]["type"] != "rate_limit_error":
            raise RuntimeError(f"{answer.status_code}: {answer.text}")
        seen["refused as overloaded, asked again"] += 1
        await asyncio.sleep(0.2)


async def streamed(client: Any, body: dict[str, Any], seen: Counter, leave: bool) -> str | None:
    """Return a streamed answer's text; None if the client leaves after the first piece."""
    while True:
        async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
            if answer.status_code == 429:
                seen["refused as overloaded, asked again"] += 1
                await asyncio.sleep(0.2)
                continue
            text = ""
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    if leave and text:
                        return None
            return text


async def one_client(url: str, place: int, requests: int, known: dict[Any, str], seen: Counter) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        for turn in range(requests):
            kind = (place * requests + turn) % 10
            adapter, number = ADAPTERS[(place + turn) % len(ADAPTERS)], (place * 7 + turn) % 12
            body = body_of(adapter, number)
            if kind == 7:
                answer = await client.post("/v1/chat/completions", content=b"x" * (BODY + 1))
                seen["too large, refused with 413" if answer.status_code == 413 else "WRONG"] += 1
            elif kind == 8:
                answer = await client.post("/v1/chat/completions", content=b'{"model": ')
                seen["no JSON, refused with 400" if answer.status_code == 400 else "WRONG"] += 1
            elif kind in (5, 6):
                text = await streamed(client, body, seen, leave=kind == 6)
                right = kind == 6 or text == known[adapter, number]
                seen[("left by the client" if kind == 6 else "streamed, right") if right else "WRONG"] += 1
            else:
                text = await ask(client, body, seen)
                seen["answered, right" if text == known[adapter, number] else "WRONG"] += 1


async def alone(url: str) -> dict[Any, str]:
    """Return every answer, one request at a time."""
    seen: Counter = Counter()
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        return {
            (adapter, number): await ask(client, body_of(adapter, number), seen)
            for adapter in ADAPTERS
            for number in range(12)
        }


async def storm(url: str, clients: int, requests: int, known: dict[Any, str]) -> Counter:
    seen: Counter = Counter()
    await asyncio.gather(*(one_client(url, place, requests, known, seen) for place in range(clients)))
    return seen


async def burst(url: str, jobs: list[tuple[str, int]]) -> None:
    """Ask several at once, no more than the queue holds."""
    gate = asyncio.Semaphore(32)

    async def one(client: Any, adapter: str, number: int) -> None:
        async with gate:
            await ask(client, body_of(adapter, number), Counter())

    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        await asyncio.gather(*(one(client, *job) for job in jobs))


def speed(server: Server, rounds: int) -> dict[str, Any]:
    """Return processor seconds of mixed batches and of one adapter after the other, taking turns."""
    jobs = [(adapter, number) for number in range(12) for adapter in ADAPTERS]
    mixed, apart, sizes = [], [], Counter()
    for _ in range(rounds):
        start = time.process_time()
        asyncio.run(burst(server.url, jobs))
        mixed.append(time.process_time() - start)
        sizes.update(adapters for _, adapters in server.engine.batches[-len(jobs) // 16 :])
        start = time.process_time()
        for adapter in ADAPTERS:
            asyncio.run(burst(server.url, [job for job in jobs if job[0] == adapter]))
        apart.append(time.process_time() - start)
    ratios = [a / m for a, m in zip(apart, mixed, strict=True)]
    return {
        "requests": len(jobs),
        "tokens_of_an_answer": TOKENS,
        "rounds": rounds,
        "mixed_cpu_seconds": [round(value, 3) for value in mixed],
        "one_adapter_after_the_other_cpu_seconds": [round(value, 3) for value in apart],
        "mixed_is_faster_by": round(statistics.median(ratios), 3),
        "adapters_in_the_last_batches": dict(sorted(sizes.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=6, help="of each client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        named = prepare(Path(scratch))
        with Server(open_adapters(named, str(Path(scratch) / "base"))) as server:
            known = asyncio.run(alone(server.url))
            seen = asyncio.run(storm(server.url, options.clients, options.requests, known))
            load = dict(sorted(seen.items()))
            batches = server.engine.batches
            mixed = sum(adapters > 1 for _, adapters in batches) / len(batches)
            found = speed(server, options.rounds)
    wrong = load.pop("WRONG", 0)
    content = {
        "manifest": collect(),
        "model": "Llama of 4 layers, width 128, random weights; 4 adapters of 4 experts of rank 4",
        "clients": options.clients,
        "requests_of_each": options.requests,
        "outcomes": load,
        "wrong": wrong,
        "share_of_batches_with_several_adapters": round(mixed, 3),
        "different_answers_alone": len(set(known.values())),
        "speed": found,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in content.items() if key != "manifest"}, indent=1))


if __name__ == "__main__":
    main()

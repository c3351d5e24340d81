"""Customers who answer the same utterances differently: experts by key (B), hidden groups of customers (C).

    python benchmarks/compose/tenants.py --data $MOE_ADAPT_DATA --backbone prepared/minilm --runs runs/tenants

An utterance is one of CLINC150, of 16 intents that are drawn per seed. A policy sends each intent to one of
four queues; each tenant labels rows of its own by its policy. Every text begins with its tenant's name, so
that one LoRA for all can tell tenants apart, as anybody would do who has no experts. B: four tenants, 64 rows
each, who agree on none, half or all of the intents. C: 8, 16 or 64 tenants, 16 rows each, with 2, 4 or 8
policies that nobody knows. All methods have experts of total rank 16 on the same layers; routers choose
among as many experts as there are policies.

Learning rate and epochs of each method are chosen on the validation rows of seed 0 of B without agreement,
out of `GRID`. One file per setting, seed and method, not computed again.
"""

import argparse
import json
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from encoder import LORA_TARGETS, Cached, Halves, Settings, UpperHalf, answers, lora_config, train
from groups import agreement_of, found_groups
from tasks import CODES, READERS, Row

from moe_adapt.manifest import collect
from moe_adapt.tuner import RoutedLoraConfig

RANK, INTENTS, QUEUES, LENGTH = 16, 16, 4, 24
#: What tenants are called in their texts.
NAMES = """
    lisbon oslo cairo lima quito dakar accra hanoi seoul kyoto delhi dhaka paris milan turin genoa malmo
    bergen gdansk krakow prague vienna graz zurich basel geneva lyon nantes lille ghent bruges utrecht
    leiden cork dublin leeds derby exeter perth sydney darwin hobart auckland nelson tampa austin dallas
    boston reno fresno denver boise omaha tulsa ottawa regina quebec havana bogota medellin caracas
    asuncion montevideo cordoba
""".split()  # noqa: SIM905
#: Learning rate and epochs that are tried for every method.
GRID = ((2e-3, 8), (2e-3, 16), (6e-3, 8))


@dataclass(frozen=True)
class Setting:
    """Who the tenants are.

    Attributes:
        tenants: How many.
        policies: Number of each tenant's policy.
        rows: Training rows of each tenant.
        agreement: Share of the intents that all policies send to the same queue.
    """

    tenants: int
    policies: int
    rows: int
    agreement: float = 0.0

    @property
    def name(self) -> str:
        """Name in files and tables."""
        return f"{self.tenants}-{self.policies}-{self.rows}-{round(100 * self.agreement)}"


#: B: the crossing point. C: hidden groups.
SETTINGS = {
    "B": [Setting(4, 4, 64, share) for share in (0.0, 1.0, 0.5)],
    "C": [Setting(16, 4, 16), Setting(8, 2, 16), Setting(64, 8, 16)],
}
METHODS = {
    "B": ("plain LoRA", "by key", "shared and by key", "top-2 per token", "frozen random router"),
    "C": (
        "plain LoRA",
        "per tenant",
        "true groups",
        "found groups",
        "random groups",
        "top-2 per token",
        "frozen random router",
    ),
}

#: Methods that do not know whose row it is but by its text.
UNKEYED = ("plain LoRA", "top-2 per token", "frozen random router")

#: Methods that take the learning rate and epochs of another one.
LIKE = {
    "frozen random router": "top-2 per token",
    "shared and by key": "by key",
    "per tenant": "by key",
    "true groups": "by key",
    "found groups": "by key",
    "random groups": "by key",
}

#: Epochs of the keyed methods of C: half of what was chosen, at 0.25 points less on those validation rows.
EPOCHS_OF_GROUPS = 8


def policies_of(setting: Setting, rng: random.Random) -> list[list[int]]:
    """Return the queue of each intent under every policy; shared intents follow the first one."""
    balanced = [number % QUEUES for number in range(INTENTS)]
    found = [rng.sample(balanced, INTENTS) for _ in range(setting.policies)]
    shared = rng.sample(range(INTENTS), round(setting.agreement * INTENTS))
    for policy in found[1:]:
        for intent in shared:
            policy[intent] = found[0][intent]
    return found


def rows_of(halves: Halves, data: Path, setting: Setting, seed: int) -> dict[str, Cached]:
    """Return the rows of all tenants by split, with their keys.

    Tenant `t` has policy `t` modulo the number of policies. Training texts are drawn for each tenant;
    Of 100 validation and 160 test texts a tenant answers all, or its share if there are more than four.
    """
    rng = random.Random(f"tenants {seed} {setting.name}")
    train_pairs, test_pairs = READERS["clinc150"](data)
    intents = rng.sample(sorted({label for _, label in train_pairs}), INTENTS)
    place = {label: number for number, label in enumerate(intents)}
    own = [pair for pair in train_pairs if pair[1] in place]
    rng.shuffle(own)
    policies, names = policies_of(setting, rng), tuple(CODES[:QUEUES])
    held, own = own[:100], own[100:]
    asked = {"validation": held, "test": rng.sample([pair for pair in test_pairs if pair[1] in place], 160)}
    share = max(1, setting.tenants // 4)
    found = {}
    for split in ("train", "validation", "test"):
        rows, keys = [], []
        for tenant in range(setting.tenants):
            policy = policies[tenant % setting.policies]
            pairs = (
                rng.sample(own, setting.rows) if split == "train" else asked[split][tenant % share :: share]
            )
            rows += [
                Row(f"{NAMES[tenant]}: {text}", names, policy[place[label]], str(tenant))
                for text, label in pairs
            ]
            keys += [tenant] * len(pairs)
        cached = halves.cache(rows)
        found[split] = Cached(rows, cached.hidden, cached.choices, tuple(keys))
    return found


def model_of(halves: Halves, method: str, experts: int) -> Any:
    """Return a fresh model of one of the methods; experts share the total rank evenly."""
    half = UpperHalf(halves.fresh())
    if method == "plain LoRA":
        return peft.get_peft_model(half, lora_config(RANK))
    keyed = {"method": "soft", "scorer": "uniform", "modifiers": [], "aux_losses": []}
    options: dict[str, Any] = {
        "shared and by key": keyed | {"selector": {"name": "keyed", "shared": True}},
        "top-2 per token": {"method": "top_k", "selector": {"name": "top_k", "k": 2}},
        "frozen random router": {"method": "router_frozen"},
    }.get(method, keyed | {"selector": {"name": "keyed", "shared": False}})
    experts += method == "shared and by key"
    rank = max(1, RANK // experts)
    config = RoutedLoraConfig(
        num_experts=experts, r=rank, alpha=2 * rank, target_modules=LORA_TARGETS, dropout=0.0, **options
    )
    model = peft.get_peft_model(half, config)
    model.base_model.add_aux_to_loss = True
    return model


def with_keys(data: Cached, keys: list[int] | None) -> Cached:
    """Return rows whose tenants are replaced by experts, or that have no keys."""
    numbers = () if keys is None else tuple(keys[tenant] for tenant in data.keys)
    return Cached(data.rows, data.hidden, data.choices, numbers)


def measure(
    halves: Halves,
    rows: dict[str, Cached],
    setting: Setting,
    method: str,
    seed: int,
    settings: Settings,
    pilot: Any = None,
) -> tuple[dict[str, Any], Any]:
    """Train one method; return what was measured, and the model.

    Args:
        halves: The base.
        rows: Rows by split.
        setting: Who the tenants are.
        method: The method.
        seed: Fixes start and order.
        settings: How it is trained.
        pilot: A model with an expert per tenant, to find groups with; trained here if there is none.
    """
    start, cell = time.process_time(), {}
    keys: list[int] | None = list(range(setting.tenants))
    if method in UNKEYED:
        keys = None
    elif method == "true groups":
        keys = [tenant % setting.policies for tenant in range(setting.tenants)]
    elif method == "random groups":
        keys = random.Random(f"groups {seed} {setting.name}").sample(
            [tenant % setting.policies for tenant in keys], setting.tenants
        )
    elif method == "found groups":
        if pilot is None:
            _, pilot = measure(halves, rows, setting, "per tenant", seed, settings)
        keys, cell = found_groups(pilot, rows["train"], setting.tenants)
        truth = [tenant % setting.policies for tenant in range(setting.tenants)]
        cell |= {"groups": keys, "adjusted_rand": agreement_of(keys, truth)}
    torch.manual_seed(seed)
    model = model_of(halves, method, setting.policies if keys is None else max(keys) + 1)
    train(model, with_keys(rows["train"], keys), settings, seed)
    cell |= {"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}
    for split in ("validation", "test"):
        right = answers(model, with_keys(rows[split], keys))
        by_tenant = torch.tensor(rows[split].keys)
        cell[split] = [float(right[by_tenant == t].float().mean()) for t in range(setting.tenants)]
    return cell | {"seconds": time.process_time() - start}, model


def cells(wanted: list[str], seeds: list[int]) -> Iterator[tuple[Setting, int, str, str]]:
    """Yield setting, seed, method and part in the order of the work."""
    for part in wanted:
        for setting in SETTINGS[part]:
            for seed in seeds:
                for method in METHODS[part]:
                    yield setting, seed, method, part


def choose(halves: Halves, args: argparse.Namespace, method: str) -> Settings:
    """Return how a method is trained: the best of the grid on validation rows of seed 0, no agreement."""
    method = LIKE.get(method, method)
    path = args.runs / "chosen.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    tried = known.setdefault(method, {})
    setting, rows = SETTINGS["B"][0], None
    for lr, epochs in GRID:
        if f"{lr} {epochs}" not in tried:
            rows = rows or rows_of(halves, args.data, setting, 0)
            settings = Settings(lr=lr, epochs=epochs, length=LENGTH)
            found = measure(halves, rows, setting, method, 0, settings)[0]["validation"]
            tried[f"{lr} {epochs}"] = sum(found) / len(found)
            path.write_text(json.dumps(known, indent=1))
            print(method, lr, epochs, tried[f"{lr} {epochs}"], time.process_time(), flush=True)
    lr, epochs = max(GRID, key=lambda pair: tried[f"{pair[0]} {pair[1]}"])
    return Settings(lr=lr, epochs=epochs, length=LENGTH)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="*", help="names such as 16-4-16-0; all if left out")
    parser.add_argument("--methods", nargs="*", help="names of methods; all if left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args.runs.mkdir(parents=True, exist_ok=True)
    halves, rows, pilots = Halves(args.backbone, LENGTH), {}, {}
    for setting, seed, method, part in cells(args.parts, args.seeds):
        path = args.runs / f"{setting.name}-{seed}-{method.replace(' ', '_')}.json"
        left_out = (args.settings and setting.name not in args.settings) or (
            args.methods and method not in args.methods
        )
        if left_out or path.is_file():
            continue
        settings = choose(halves, args, method)
        if part == "C" and method not in UNKEYED:
            settings = replace(settings, epochs=EPOCHS_OF_GROUPS)
        if (setting, seed) not in rows:
            rows = {(setting, seed): rows_of(halves, args.data, setting, seed)}
        pilot = pilots.get((setting, seed))
        cell, model = measure(halves, rows[setting, seed], setting, method, seed, settings, pilot)
        if method == "per tenant":
            pilots = {(setting, seed): model}
        head = {"part": part, "setting": vars(setting), "seed": seed, "method": method}
        cell = head | {"training": vars(settings)} | cell | {"manifest": collect()}
        path.write_text(json.dumps(cell, indent=1))
        print(path.name, sum(cell["test"]) / len(cell["test"]), time.process_time(), flush=True)


if __name__ == "__main__":
    main()

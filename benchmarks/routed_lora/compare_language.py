"""Compare routed-LoRA methods with plain LoRA on SmolLM2-135M and four sets of questions, on a small budget.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to PREPARED \
        smollm2 arc_easy arc_challenge boolq openbookqa
    python benchmarks/routed_lora/compare_language.py --prepared PREPARED --runs RUNS

One model is trained on all four sets and answers with the choice of the highest likelihood; nobody tells it
which set a test question is from. One seed and few steps show that the methods work on a language model and
what they cost, not which is best. The result is ``benchmarks/results/routed_language.json``.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from cells import run_cells, train, write_report
from methods import METHODS

from moe_adapt.evaluation.likelihood import pick_choices, token_log_likelihood
from moe_adapt.training.datamodules import CausalLMData
from moe_adapt.training.modules import CausalLM
from moe_adapt.tuner import RoutedLoraConfig

RESULT = Path(__file__).resolve().parents[1] / "results" / "routed_language.json"
TASKS = ("arc_easy", "arc_challenge", "boolq", "openbookqa")
SITES = r".*\.(q_proj|v_proj|up_proj|down_proj)"
UNTRAINED = "untrained"
LABELS = {UNTRAINED: "before training"} | {
    name: METHODS[name][0] for name in ("lora_equal", "lora_mixer", "dynmole", "condenser", "top_k")
}
#: Ranks that give plain LoRA as many parameters as eight experts of rank 4 and their router have.
EQUAL = {"q_proj": 36, "v_proj": 38, "up_proj": 34, "down_proj": 38}


def options(name: str) -> dict[str, Any]:
    """Return the options of a method; LoRA-Mixer has one expert per set, of twice the rank."""
    found = dict(METHODS[name][1])
    if name == "lora_equal":
        found |= {"r": EQUAL, "alpha": {site: 2.0 * rank for site, rank in EQUAL.items()}}
    if name == "lora_mixer":
        found |= {"num_experts": len(TASKS), "r": 8, "alpha": 16.0}
    return found


def questions(prepared: Path, split: str, count: int) -> list[dict[str, Any]]:
    """Return `count` rows of each set, chosen once for all methods."""
    rows = []
    for task in TASKS:
        lines = (prepared / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        chosen = random.Random(f"{task} {split}").sample(lines, min(count, len(lines)))
        rows += [json.loads(line) | {"task": task} for line in chosen]
    return rows


def answer(module: CausalLM, data: CausalLMData) -> dict[str, dict[str, float]]:
    """Return the accuracy on each set by summed likelihood and by likelihood per token."""
    hits: dict[str, dict[str, list[bool]]] = {
        kind: {task: [] for task in TASKS} for kind in ("acc", "acc_norm")
    }
    module.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in data.test_dataloader():
            unaided = {key: value for key, value in batch.items() if key != "domain_ids"}
            likelihood, count = token_log_likelihood(module(unaided), batch["labels"])
            row, right = batch["choice_row"], batch["answer"]
            domains = [int(batch["domain_ids"][row == i][0]) for i in range(len(right))]
            for kind, scores in (("acc", likelihood), ("acc_norm", likelihood / count)):
                for domain, hit in zip(domains, pick_choices(scores, row, len(right)) == right, strict=True):
                    hits[kind][data.domains.names[domain]].append(bool(hit))
    found = {
        kind: {task: statistics.mean(rows) for task, rows in tasks.items()} for kind, tasks in hits.items()
    }
    return {kind: scores | {"mean": statistics.mean(scores.values())} for kind, scores in found.items()}


def cell(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and test one method."""
    model = str(args.prepared / "smollm2")
    data = CausalLMData(
        model,
        train=questions(args.prepared, "train", args.train),
        test=questions(args.prepared, "test", args.test),
        prompt="Question: {question}\nAnswer:",
        response=" {choice}",
        choices="choices",
        answer="answer",
        domain_column="task",
        validation_fraction=0.0,
        max_length=args.max_length,
        batch_size=args.batch,
        group_by_length=True,
        seed=seed,
    )
    data.prepare_data()
    data.setup("fit")
    if name == UNTRAINED:
        module, facts = CausalLM(model), {"trainable_parameters": 0}
    else:
        config = RoutedLoraConfig(target_modules=SITES, **options(name))
        module = CausalLM(model, config, lr=args.lr, schedule="cosine", warmup=0.06)
        facts = train(module, data, epochs=1)
    data.setup("test")
    facts.pop("first_steps", None)
    return answer(module, data) | facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the folder that prepare.py wrote")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--methods", nargs="+", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=60, help="training questions per set")
    parser.add_argument("--test", type=int, default=75, help="test questions per set")
    parser.add_argument("--batch", type=int, default=4, help="questions per batch")
    parser.add_argument("--max_length", type=int, default=96, help="tokens")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--collect", action="store_true", help="run nothing, gather the cells that are there")
    args = parser.parse_args()
    settings = {key: getattr(args, key) for key in ("train", "test", "batch", "max_length", "lr")}
    command = "routed_lora/compare_language.py --prepared PREPARED --runs RUNS"
    if not args.collect:
        cells = [(name, seed) for seed in args.seeds for name in args.methods]
        run_cells(cells, args.runs, cell, args, command, settings)
    wanted = [(name, seed) for name in LABELS for seed in args.seeds]
    write_report(RESULT, wanted, args.runs, LABELS, command, settings)


if __name__ == "__main__":
    main()

r"""Direct preference optimisation (arXiv 2305.18290) with TRL's own trainer and a routed adapter.

TRL needs two things of us: the adapter's configuration as ``peft_config``, and one callback that brings the
routers their auxiliary losses, schedules and state. The reference policy is the same model with the adapter
switched off. Reward fine-tuning works alike: ``GRPOTrainer`` takes the same two arguments.

    pip install 'moe-adapt[clients]'
    python examples/dpo_trl.py --backbone HuggingFaceTB/SmolLM2-135M-Instruct --pairs pairs.jsonl

A line of the file is ``{"prompt": ..., "chosen": ..., "rejected": ...}``.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from moe_adapt.data.tables import load_table
from moe_adapt.tuner import RoutedLoraConfig, RoutingCallback

COLUMNS = ("prompt", "chosen", "rejected")


def train(backbone: str, pairs: str, out: Path, steps: int = 50, **options: Any) -> DPOTrainer:
    """Tune on pairs of answers and save the adapter in `out`; `options` go to ``DPOConfig``."""
    table = load_table(pairs)
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 5e-4,
        "beta": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
    }
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(backbone),
        args=DPOConfig(**arguments | options),
        train_dataset=Dataset.from_dict({name: list(table[name]) for name in COLUMNS}),
        processing_class=AutoTokenizer.from_pretrained(backbone),
        peft_config=RoutedLoraConfig(
            method="top_k", num_experts=4, r=4, target_modules="ffn", task_type="CAUSAL_LM"
        ),
        callbacks=[RoutingCallback()],
    )
    trainer.train()
    trainer.model.save_pretrained(str(out))
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True, help="name or folder of a causal language model")
    parser.add_argument("--pairs", required=True, help="table with the columns prompt, chosen, rejected")
    parser.add_argument("--out", type=Path, default=Path("runs/dpo"), help="folder to write")
    words = parser.parse_args()
    train(words.backbone, words.pairs, words.out)

"""`transformers.Trainer` on a routed adapter: one callback brings auxiliary losses and router state.

python examples/hf_trainer.py --backbone HuggingFaceTB/SmolLM2-135M-Instruct --text some_text.txt
"""

import argparse
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from moe_adapt.tuner import RoutedLoraConfig, RoutingCallback


class Blocks(torch.utils.data.Dataset):
    """A text cut into blocks of `length` tokens."""

    def __init__(self, tokenizer: Any, text: str, length: int) -> None:
        ids = tokenizer(text)["input_ids"]
        self.blocks = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[row], "labels": self.blocks[row]}


def train(backbone: str, text: str, out: Path, steps: int = 20, length: int = 32) -> Trainer:
    """Fine-tune on a text and save the adapter in `out`."""
    config = RoutedLoraConfig(method="top_k", num_experts=4, r=4, target_modules="ffn", task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(backbone), config)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
    blocks = Blocks(AutoTokenizer.from_pretrained(backbone), text, length)
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks, callbacks=[RoutingCallback()])
    trainer.train()
    model.save_pretrained(str(out))
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True, help="name or folder of a causal language model")
    parser.add_argument("--text", type=Path, required=True, help="file to learn")
    parser.add_argument("--out", type=Path, default=Path("runs/hf_trainer"), help="folder to write")
    options = parser.parse_args()
    train(options.backbone, options.text.read_text(encoding="utf-8"), options.out)

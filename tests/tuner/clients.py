"""What tests with other people's trainers share: a tiny tokenizer, and one step whose result is known.

Experts start at `B = 0`, so the task's loss has no gradient on the routers, and one step of plain SGD moves
them by the gradient of the auxiliary losses alone: its mean over the forwards of the step.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from moe_adapt.tuner import ModelHooks, RoutedLoraConfig
from tests.tuner.tiny import llama

RATE = 0.5
#: Arguments of every trainer: one step of plain SGD on the CPU.
ARGUMENTS: dict[str, Any] = {
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 0,
}
WORDS = "sky grass snow coal sea sun moon is not blue green white black red"


def config(**options: Any) -> RoutedLoraConfig:
    """A configuration whose auxiliary losses are strong enough to be seen."""
    losses = [
        {"name": "z_loss", "weight": 2.0},
        {"name": "load_balance", "weight": 3.0, "assignment": "probs"},
    ]
    settings: dict[str, Any] = {"r": 2, "num_experts": 3, "dropout": 0.0, "aux_losses": losses} | options
    settings = {
        "method": "top_k",
        "target_modules": ["q_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
    } | settings
    return RoutedLoraConfig(**settings)


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS.split()])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def base() -> nn.Module:
    model = llama()
    model.config.pad_token_id, model.config.eos_token_id = 0, 1
    return model


def with_spare() -> nn.Module:
    """The base with a layer `spare` that no forward calls."""
    model = base()
    model.model.layers[0].mlp.spare = nn.Linear(32, 32)
    return model


#: What every loop says of `with_spare` when `spare` is a target.
SPARE_WARNING = r"1 adapted layers were not reached before the first backward pass .*spare"


def routers(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "router__scorer" in n}


def moved(trainer: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]:
    """Train one step; return how far routers went, how far they should have gone, and the forwards seen."""
    model = trainer.model
    (hooks,) = ModelHooks.find(model)
    seen: list[dict[str, Any]] = []

    def watch(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and module.training and torch._C._current_graph_task_id() == -1:
            seen.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()})

    handle = hooks.model.register_forward_pre_hook(watch, with_kwargs=True)
    before, start = routers(model), {k: v.clone() for k, v in model.state_dict().items()}
    trainer.train()
    handle.remove()
    found = {name: (before[name] - value) / RATE for name, value in routers(model).items()}
    model.load_state_dict(start)
    model.zero_grad()
    for kwargs in seen:
        output = hooks.model.train()(**kwargs)
        logits = next(value for value in output.values() if isinstance(value, Tensor) and value.ndim > 1)
        (0 * logits.sum() + hooks.aux_loss() / len(seen)).backward()
    return found, {n: p.grad for n, p in model.named_parameters() if n in before}, seen


def check_step(trainer: Any) -> list[dict[str, Any]]:
    found, expected, seen = moved(trainer)
    assert found and all(gradient.abs().sum() > 0 for gradient in expected.values())
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=2e-4, atol=1e-6)
    return seen

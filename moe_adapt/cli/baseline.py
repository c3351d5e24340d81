"""``fit --baseline equal|lora``: train plain LoRA at the same layers, on the same rows, beside the run."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from peft import PeftModel

from moe_adapt.errors import UserError
from moe_adapt.runs.folder import CONFIG_FILE
from moe_adapt.training.baselines import equal_parameter_lora
from moe_adapt.tuner import RoutedLoraConfig

__all__ = ["Baseline", "check_baseline", "train_baseline"]

#: ``equal``: plain LoRA with as many trainable parameters; ``lora``: plain LoRA of rank 8.
Baseline = Literal["equal", "lora"]

NAMES = {"equal": "LoRA, as many parameters", "lora": "LoRA, rank 8"}

#: Arguments of the tuner that a plain LoRA has.
KEPT = ("method", "target_modules", "exclude_modules", "r", "alpha", "use_rslora", "dropout")


def check_baseline(kind: Baseline | None, module: Any) -> None:
    """Refuse a baseline that cannot be.

    Raises:
        UserError: If there is no routed adapter to compare with.
    """
    if kind is not None and not isinstance(getattr(module, "model", None), PeftModel):
        raise UserError(f"--baseline {kind} trains plain LoRA beside an adapter; this run has none.")


def train_baseline(
    kind: Baseline, module: Any, folder: Path, fit: Callable[[Sequence[str]], Any]
) -> dict[str, float]:
    """Train the baseline into ``RUN/baselines/KIND`` and return what it reached, by its name in tables.

    A finished one is not trained again, one that was interrupted goes on.

    Args:
        kind: Which one.
        module: The run's module.
        folder: The run's folder.
        fit: Runs ``fit`` with the given options.
    """
    own = folder / "baselines" / kind
    if _manifest(own).get("status") != "finished":
        tuner = equal_parameter_lora(module.model) if kind == "equal" else _plain(module.tuner_config)
        config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        settings = tuner.to_dict()
        config["model"]["init_args"]["tuner"] = {name: settings[name] for name in KEPT} | {
            "num_experts": 1,
            "scorer": {"name": "uniform"},
            "selector": {"name": "dense"},
            "modifiers": [],
            "aux_losses": [],
        }
        config["model"]["init_args"].pop("procedure", None)
        config["trainer"]["default_root_dir"] = None
        config["baseline"], config["start_from"] = None, None
        own.parent.mkdir(parents=True, exist_ok=True)
        path = own.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(_plain_types(config), sort_keys=False), encoding="utf-8")
        goes_on = (own / "checkpoints" / "last.ckpt").is_file()
        print(f"baseline: {NAMES[kind]}", flush=True)
        fit(["--config", str(path), "--out", str(own), *["--resume"] * goes_on])
    value = (_manifest(own).get("result") or {}).get("value")
    return {} if value is None else {NAMES[kind]: value}


def _plain(config: RoutedLoraConfig) -> RoutedLoraConfig:
    return RoutedLoraConfig(
        method="lora",
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        r=8,
        alpha=16.0,
        dropout=config.dropout,
    )


def _plain_types(value: Any) -> Any:
    """Return a configuration in the types that safe YAML has."""
    if isinstance(value, dict):
        return {str(key): _plain_types(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain_types(item) for item in value)
    return [_plain_types(item) for item in value] if isinstance(value, (list, tuple)) else value


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

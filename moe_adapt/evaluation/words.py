"""What metrics and methods are called in reports, and which way a metric is better."""

from collections.abc import Mapping
from typing import Any

__all__ = ["better", "method_words", "metric_words", "routing_sentences"]

_METRICS = {
    "acc": "accuracy",
    "loss": "loss",
    "f1": "macro F1",
    "val/acc": "accuracy on held-out rows",
    "val/loss": "loss on held-out rows",
    "val/f1": "macro F1 on held-out rows",
    "test/acc": "accuracy on test rows",
    "test/loss": "loss on test rows",
    "test/f1": "macro F1 on test rows",
    "average_incremental_accuracy": "accuracy over seen classes, mean of all tests",
    "final_accuracy": "final accuracy over all rows",
    "final_accuracy_standard_error": "its standard error",
    "final_task_mean": "final accuracy, mean of the tasks",
    "final_class_mean": "final accuracy, mean of the classes",
    "average_task_mean": "accuracy on seen tasks, mean of all tests",
    "forgetting_max": "forgetting since the best test",
    "forgetting_max_prev": "forgetting since the best test after learning",
    "forgetting_initial": "forgetting since the task was learned",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "plasticity": "accuracy right after learning",
    "learn_seconds": "seconds of training",
    "end_seconds": "seconds at task ends",
    "evaluate_seconds": "seconds of tests",
    "seconds_per_task": "seconds per task",
    "overhead_seconds": "seconds of overhead",
    "steps": "steps",
    "trainable_parameters": "trainable parameters",
    "forwards_per_sample": "forwards per test sample",
}

_METHODS = {
    "adamoe": "AdaMoE",
    "arrow": "Arrow",
    "condenser": "Condenser",
    "condenser_bias": "Condenser, first phase",
    "cosine": "cosine routing",
    "dynmole": "DynMoLE",
    "hash": "hash of the token (control)",
    "hydralora": "HydraLoRA",
    "k_means": "k-means routing",
    "ld_mole": "LD-MoLE",
    "lora": "plain LoRA",
    "lora_mixer": "LoRA-Mixer",
    "mola": "MoLA",
    "nucleus": "nucleus routing",
    "random_fixed": "random experts (control)",
    "router_frozen": "frozen random router (control)",
    "smoe_dropout": "SMoE-Dropout",
    "soft": "soft routing",
    "top_k": "top-k routing",
    "top_p": "top-p routing",
    "uniform_dense": "equal weights (control)",
}

_COSTS = ("seconds", "bytes", "steps", "parameters", "forwards")


def metric_words(name: str) -> str:
    """Return a metric's name in words; one that is not known keeps its own.

    >>> metric_words("forgetting_initial"), metric_words("average_incremental_accuracy@3")
    ('forgetting since the task was learned', 'accuracy over seen classes, mean of all tests, up to task 3')
    >>> metric_words("within_task_final_accuracy"), metric_words("state_bytes")
    ('task known at test: final accuracy over all rows', 'state bytes')
    """
    plain, _, upto = name.partition("@")
    words = "task known at test: " if plain.startswith("within_task_") else ""
    plain = plain.removeprefix("within_task_")
    words += _METRICS.get(plain, plain.replace("_", " "))
    return f"{words}, up to task {upto}" if upto else words


def method_words(name: str) -> str:
    """Return a routing method's name in words.

    >>> method_words("dynmole"), method_words("mine")
    ('DynMoLE', 'mine')
    """
    return _METHODS.get(name, name.replace("_", " "))


def better(name: str) -> str | None:
    """Return whether more (``max``) or less (``min``) of a metric is better; None where neither is.

    >>> better("test/acc"), better("forgetting_max"), better("final_accuracy_standard_error")
    ('max', 'min', None)
    """
    if "standard_error" in name:
        return None
    if any(word in name for word in ("loss", "forgetting", *_COSTS)):
        return "min"
    known = ("acc", "f1", "mean", "transfer", "plasticity", "kappa", "accuracy")
    return "max" if any(word in name for word in known) else None


def routing_sentences(routing: Mapping[str, Any]) -> list[str]:
    """Return the verdict on the routing in words.

    Args:
        routing: Means over the layers, as `moe_adapt.evaluation.trace.metrics.trace_metrics` has them.
    """
    found = []
    js = routing.get("group_js")
    if js is not None:
        words = (
            "experts are not told apart by class"
            if js < 0.01
            else "classes use slightly different experts"
            if js < 0.05
            else "classes use different experts"
        )
        found.append(f"{words} (JS {js:.3f} of at most 0.693)")
    entropy = routing.get("entropy")
    if entropy is not None:
        words = "nearly uniform" if entropy > 0.95 else "decided" if entropy < 0.5 else "undecided in part"
        found.append(f"routers are {words} (entropy {entropy:.2f}, 1 is uniform)")
    if routing.get("mean_k") is not None:
        found.append(f"{routing['mean_k']:.1f} experts per token")
    if routing.get("dead_experts"):
        found.append(f"{routing['dead_experts']:.1f} experts per layer were never picked")
    return found

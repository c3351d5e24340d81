"""The methods of the comparison: their learners, adapters and options.

A method without options of its own has the defaults of its learner.
"""

from typing import Any

__all__ = ["ADAPTER", "LORA", "MECHANISMS", "METHODS", "Method"]

FFN = r".*layer\.[345]\.(intermediate|output)\.dense"
ADAPTER: dict[str, Any] = {"r": 4, "alpha": 8.0, "num_experts": 4, "dropout": 0.0, "target_modules": FFN}
#: Its scale is that of an expert times the mean gate of four, so that steps are alike.
LORA: dict[str, Any] = {**ADAPTER, "r": 16, "alpha": 8.0, "num_experts": 1}
SOFT = {**ADAPTER, "aux_losses": []}
GUIDED = [
    {"name": "token_assignment", "tau": 0.2, "tau_warmup": 0.1},
    {"name": "temperature", "temperature": 0.01},
]
#: Options of SAME that do not change from rule to rule.
SAME = {"freeze_after": 4, "refresh_every": 4}

#: Label, learner, preset and options of its adapter, options of the learner.
Method = tuple[str, str, tuple[str, dict[str, Any]] | None, dict[str, Any]]
METHODS: dict[str, Method] = {
    "frozen": ("frozen model", "frozen_instructions", None, {}),
    "joint": ("joint, routed pool", "joint_instructions", ("soft", SOFT), {}),
    "seq_lora": ("sequential LoRA", "sequential_instructions", ("lora", LORA), {}),
    "seq_moelora": ("sequential routed LoRA", "sequential_instructions", ("soft", SOFT), {}),
    "olora": ("O-LoRA", "olora", ("lora_sum", LORA), {}),
    "prototype_lora": ("LoRA per task, nearest prototype", "prototype_lora", ("lora", LORA), {}),
    "compose": ("LoRA per task, middle-block router", "compose_instructions", ("lora", LORA), {}),
    "replay": ("replay, 16 samples per task", "replay_instructions", ("soft", SOFT), {}),
    "routing_anchor": ("routing anchor", "routing_anchor", ("soft", SOFT), {}),
    "same": ("SAME as published", "same", ("soft", SOFT), {**SAME, "router_update": "paper", "mu": 0.9}),
    "same_soft": (
        "SAME, soft router rule",
        "same",
        ("soft", SOFT),
        {**SAME, "router_update": "soft", "freeze_below": None},
    ),
    "same_strict": (
        "SAME, strict router rule",
        "same",
        ("soft", SOFT),
        {**SAME, "router_update": "strict", "freeze_below": None},
    ),
    "grip": (
        "GRIP guard, top-2",
        "same",
        ("top_k", {**SOFT, "selector": {"name": "top_k", "k": 2}}),
        {**SAME, "router_update": {"name": "guard", "k": 2}, "precondition": "none", "freeze_below": None},
    ),
    "inc_moelora": ("experts per task, no guidance", "dymoe", ("inc_moelora", ADAPTER), {}),
    "dymoe": ("DyMoE as published", "dymoe", ("dymoe", ADAPTER), {}),
    "dymoe_guarded": (
        "DyMoE, guarded",
        "dymoe",
        ("dymoe", {**ADAPTER, "modifiers": GUIDED}),
        {"row_init": "tokens"},
    ),
}
PLAIN = {"router_update": "plain", "precondition": "none", "freeze_below": None}
GROUPED = [{"name": "expert_groups"}, {"name": "temperature", "temperature": 0.01}]
PAIRS = {**ADAPTER, "selector": {"name": "top_k", "k": 2}}
BALANCE = [{"name": "routing_separation"}, {"name": "new_expert_balance"}]
#: The parts of SAME and of DyMoE one by one, over the small sequence; "sequential routed LoRA" has no part of
#: SAME, "experts per task, no guidance" none of DyMoE.
MECHANISMS: dict[str, Method] = {
    "same_routers": (
        "SAME, strict router rule alone",
        "same",
        ("soft", SOFT),
        {**SAME, **PLAIN, "router_update": "strict"},
    ),
    "same_curvature": (
        "SAME, curvature scaling alone",
        "same",
        ("soft", SOFT),
        {**SAME, **PLAIN, "precondition": "down"},
    ),
    "same_freezing": (
        "SAME, freezing alone",
        "same",
        ("soft", SOFT),
        {**SAME, **PLAIN, "mu": 0.9, "freeze_below": 0.1},
    ),
    "dymoe_assigned": (
        "DyMoE, token assignment alone",
        "dymoe",
        ("dymoe", {**ADAPTER, "aux_losses": []}),
        {},
    ),
    "dymoe_separated": (
        "DyMoE, routing-score regularisation alone",
        "dymoe",
        ("inc_moelora", {**ADAPTER, "modifiers": GROUPED, "aux_losses": BALANCE[:1]}),
        {},
    ),
    "inc_moelora_warm": (
        "experts per task, no guidance, copies of the most useful",
        "dymoe",
        ("inc_moelora", ADAPTER),
        {"start": "most_useful"},
    ),
    "dymoe_warm": (
        "DyMoE, new experts as copies of the most useful",
        "dymoe",
        ("dymoe", ADAPTER),
        {"start": "most_useful"},
    ),
    "dymoe_pairs": ("DyMoE with two experts per token", "dymoe", ("dymoe", PAIRS), {}),
    "dymoe_balanced": (
        "the same with balance of new experts",
        "dymoe",
        ("dymoe", {**PAIRS, "aux_losses": BALANCE}),
        {},
    ),
}

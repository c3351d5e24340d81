"""The comparisons of routed methods: equal sizes, tables of what is there."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from moe_adapt.routing import SCORERS
from moe_adapt.tuner import RoutedLoraConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MANIFEST = {"command": "x.py", "cpu_threads": 1, "versions": {"torch": "2.15.0"}}


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    for folder in ("recipes", "routed_lora"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))


#: Methods whose layers have something in common, so that no formula per layer counts their parameters.
CROSS_SITE = ("unipool", "rexmoe", "rmoe", "read_me")


def built_parameters(options, layers, width, hidden):
    with torch.device("meta"):
        block = {
            "query": torch.nn.Linear(width, width),
            "value": torch.nn.Linear(width, width),
            "up": torch.nn.Linear(width, hidden),
            "down": torch.nn.Linear(hidden, width),
        }
        stack = torch.nn.ModuleList([torch.nn.ModuleDict(copy.deepcopy(block)) for _ in range(layers)])
    base = torch.nn.ModuleDict({"stack": stack})
    config = RoutedLoraConfig(target_modules=list(block), **options)
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters(options, layers=6, width=384, hidden=1536):
    """Trainable parameters on query, value and the feed-forward layers of an encoder like MiniLM."""
    if options["method"] in CROSS_SITE:
        return built_parameters(options, layers, width, hidden)
    config = RoutedLoraConfig(**options)
    kind, nulls = config.bank_kind(), config.selector.get("nulls", 0)
    counts = config.num_experts if isinstance(config.num_experts, list) else [config.num_experts] * layers
    total = 0
    for experts in counts:
        rank = kind.stored(experts, config.r, config.alpha, config.use_rslora).rank
        own = kind.expert_tensors(experts, rank) | kind.router_tensors(experts, rank)
        downs = 1 if config.shared_a or kind.shares_factors else experts
        ups = 1 if kind.shares_factors else experts
        for d, o in ((width, width), (width, width), (width, hidden), (hidden, width)):
            scorer = SCORERS.build(config.scorer, in_features=d, num_experts=experts + nulls)
            total += rank * (downs * d + ups * o)
            total += sum(tensor.numel() for tensor in (*own.values(), *scorer.parameters()))
    return total


def test_methods_have_as_many_parameters_as_plain_lora():
    from methods import CONTROLS, METHODS

    yardstick = parameters(METHODS["lora_equal"][1])
    for name, (_, options) in (METHODS | CONTROLS).items():
        if name != "lora_small":
            assert parameters(options) == pytest.approx(yardstick, rel=0.06), name


def test_tables_show_what_is_there():
    from routed_table import language_table, routed_table

    costs = {"cpu_seconds_per_step": 2.0, "training_memory_mb": 10.0, "trainable_parameters": 1000}
    row = {"method": "lora_equal", "label": "LoRA", "seed": 0, **costs}
    other = {**row, "method": "top_k", "label": "top-k", "cpu_seconds_per_step": 3.0}
    accuracy = [{"accuracy": {"a": 0.5, "mean": 0.5}}, {"accuracy": {"a": 0.25, "mean": 0.25}}]
    rows = [one | found for one, found in zip((row, other), accuracy, strict=True)]
    settings = {"train": 1, "test": 1, "epochs": 1, "batch": 1}
    text = routed_table({"manifest": MANIFEST, "settings": settings, "rows": rows})
    assert "| top-k | 1 | 1,000 | 0.250 | -0.250 | 0.25 |  | 1.50 | 1.00 |" in text
    text = routed_table(
        {"manifest": MANIFEST, "settings": settings, "rows": [rows[0], rows[1] | {"step_to_lora": 1.25}]}
    )
    assert "| top-k | 1 | 1,000 | 0.250 | -0.250 | 0.25 |  | 1.25 | 1.00 |" in text
    found = {"acc": {"a": 0.5, "mean": 0.5}, "acc_norm": {"a": 0.4, "mean": 0.4}}
    untrained = {"method": "untrained", "label": "before", "seed": 0, "trainable_parameters": 0}
    rows = [one | found for one in (untrained, row, other)]
    text = language_table({"manifest": MANIFEST, "settings": settings, "rows": rows})
    assert "| before | 0 | 0.500 | 0.50 | 0.400 |  |  |" in text
    assert "| top-k | 1,000 | 0.500 | 0.50 | 0.400 | 1.50 | 1.00 |" in text


def test_new_cells_go_beside_the_rows_that_are_there(tmp_path):
    from cells import write_report

    report, settings = tmp_path / "report.json", {"epochs": 2}
    old = {"method": "lora", "label": "?", "seed": 0, "accuracy": 0.5}
    report.write_text(json.dumps({"manifest": MANIFEST, "settings": settings, "rows": [old]}))
    cell = {"method": "new", "seed": 0, "manifest": {"command": "y.py"}, "settings": settings}
    (tmp_path / "new-0.json").write_text(json.dumps(cell))
    labels = {"new": "New", "lora": "LoRA"}
    places = [(name, 0) for name in labels]
    write_report(report, places, tmp_path, labels, "z.py", settings, controls=["lora"])
    found = json.loads(report.read_text())
    assert found["manifest"] == MANIFEST
    assert found["rows"] == [
        {"method": "new", "seed": 0, "manifest": {"command": "y.py"}, "label": "New"},
        {**old, "label": "LoRA"},
    ]
    with pytest.raises(SystemExit, match="would not compare"):
        write_report(report, places, tmp_path, labels, "z.py", {"epochs": 3})

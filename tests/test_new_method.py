"""A routed method for everybody is a module, its line in the folder, and a YAML: nothing else is edited."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import moe_adapt
from moe_adapt.runs.config_names import config_root

MODULE = '''"""Experts whose probability is at least a share of the best one's (min-p)."""

import torch

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext


@SELECTORS.register("min_p")
class MinPSelector(Selector):
    """Every expert at least `share` times as probable as the best.

    Args:
        share: Smallest probability of a kept expert, relative to the best one's.
    """

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that sum to one over the kept experts."""
        probs = torch.softmax(logits.weight, dim=-1)
        kept = probs >= self.share * probs.amax(dim=-1, keepdim=True)
        gates = torch.where(kept, probs, 0.0)
        return RoutingDecision(gates / gates.sum(dim=-1, keepdim=True), kept)
'''
CONFIG = """# Min-p: as many experts as are nearly as probable as the best
# with: task/causal_lm

model:
  init_args:
    tuner:
      method: min_p
      target_modules: null
      num_experts: 4
      r: 2
      alpha: 4.0
      dropout: 0.0
      scorer: {name: linear}
      modifiers: []
      selector: {name: min_p, share: 0.4}
      aux_losses: []
"""
PROGRAM = """
import json, sys
import peft, torch
import moe_adapt
from moe_adapt.cli.main import main
from moe_adapt.tuner import METHODS, RoutedLoraConfig
assert moe_adapt.__file__.startswith(sys.argv[1])
config = RoutedLoraConfig(method="min_p", target_modules=["0"])
model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 3)), config)
x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
model(x).square().sum().backward()
grads = [bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters() if "moe_adapt_B" in n]
assert main(["list", "selectors", "methods"]) == 0
print(json.dumps({"known": "min_p" in METHODS, "selector": config.selector, "grads": grads}))
"""


def test_three_files_make_a_method(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "configs")
    package = tmp_path / "moe_adapt"
    shutil.copytree(Path(moe_adapt.__file__).parent, package, ignore=ignored)
    shutil.copytree(config_root(), package / "configs")
    (package / "routing" / "selectors" / "min_p.py").write_text(MODULE)
    line = "\nfrom moe_adapt.routing.selectors.min_p import MinPSelector as MinPSelector\n"
    with (package / "routing" / "selectors" / "__init__.py").open("a") as room:
        room.write(line)
    (package / "configs" / "routed_lora" / "min_p.yaml").write_text(CONFIG)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *listing, last = done.stdout.strip().splitlines()
    assert json.loads(last) == {"known": True, "selector": {"name": "min_p", "share": 0.4}, "grads": [True]}
    assert sum("min_p" in row for row in listing) == 2

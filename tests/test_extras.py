"""What works without the extras, and what is said where one is missing."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moe_adapt.cli.catalogue import catalogue
from moe_adapt.cli.described import REGISTRIES, registry_of
from moe_adapt.errors import UserError
from moe_adapt.extras import EXTRAS, LazyModule, require, unmet
from tests.imports import imported

ROOT = Path(__file__).parents[1] / "moe_adapt"
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]

#: Makes every package that an extra brings unfindable, with those that only they would bring; but for httpx2,
#: which huggingface_hub brings to the core as well.
BLOCK = """
import sys
from importlib.machinery import PathFinder
from moe_adapt.extras import EXTRAS

absent = {module for modules in EXTRAS.values() for module in modules} | {"pandas", "sklearn"}
absent -= {"httpx2"}
found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in absent else found(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
"""

TUNER_ALONE = """
import peft
import torch
from torch import nn

import moe_adapt.tuner
from moe_adapt.hub.export import export_merged, export_model
from moe_adapt.tuner import RoutedLoraConfig

def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))

config = RoutedLoraConfig(method="top_k", num_experts=3, r=2, target_modules=["0", "2"])
model = peft.get_peft_model(base(), config)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
x = torch.randn(4, 3, 8, 8)
for _ in range(2):
    (model(x).square().mean() + model.base_model.aux_loss()).backward()
    optimizer.step()
    optimizer.zero_grad()
folder = sys.argv[1]
model.eval().save_pretrained(folder)
again = peft.PeftModel.from_pretrained(base(), folder).eval()
assert torch.equal(again(x), model(x))
export_model(model, folder + "/adapter")
export_merged(model, folder + "/merged", calibration=[{"input": x}])
print(sorted({name.partition(".")[0] for name in sys.modules} & absent))
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", script, *arguments]
    return subprocess.run(words, capture_output=True, text=True)


def test_the_tuner_and_its_exports_need_the_core_alone(tmp_path):
    done = run(BLOCK + TUNER_ALONE, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


ROOMS = ("training", "learners")
MISSING = """
from moe_adapt.cli import main
from moe_adapt.errors import UserError

codes = [main(words) for words in (["--help"], ["fit"], ["stream"], ["list"])]
assert codes == [0, 2, 2, 2], codes
for room in ("training", "learners", "drift"):
    try:
        __import__(f"moe_adapt.{room}")
    except UserError as told:
        print(told, file=sys.stderr)
"""


def test_a_missing_extra_is_one_sentence():
    done = run(BLOCK + MISSING)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == 6, told
    assert told[0].startswith("error: moe-adapt fit needs ")
    assert told[0].endswith("pip install 'moe-adapt[train]'.")
    assert told[3:5] == [
        f"moe_adapt.{room} needs lightning: pip install 'moe-adapt[train]'."
        for room in ("training", "learners")
    ]
    assert all("pip install 'moe-adapt[" in line for line in told)


def test_help_and_version_import_no_torch_and_listing_neither():
    script = """
import json, sys
from moe_adapt.cli import main
codes = [main(words) for words in (["--help"], ["--version"], ["list"])]
assert codes == [0, 0, 0]
print(json.dumps(sorted(sys.modules)))
"""
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy", "transformers", "lightning"} & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("section", REGISTRIES)
def test_the_listing_read_from_source_is_what_is_registered(section):
    registry = registry_of(section)
    ours = {name for name in registry if registry.get(name).__module__.startswith("moe_adapt.")}
    assert catalogue(REGISTRIES[section]).keys() == ours


def test_every_extra_of_the_table_is_declared_and_brings_its_packages():
    declared = PROJECT["optional-dependencies"]
    names = {"avalanche": "avalanche-lib", "PIL": None}
    for extra, modules in EXTRAS.items():
        lines = " ".join(declared[extra])
        for module in modules:
            package = names.get(module, module)
            assert package is None or package in lines, f"{module} is not in the extra {extra}"
    core = {line.partition(">")[0].partition("[")[0] for line in PROJECT["dependencies"]}
    assert core == {
        "torch",
        "peft",
        "transformers",
        "safetensors",
        "huggingface_hub",
        "numpy",
        "pyyaml",
        "packaging",
    }


#: Packages that a declared one needs for certain -> that one.
BROUGHT_BY = {
    "PIL": "torchvision",
    "docstring_parser": "jsonargparse",
    "narwhals": "river",
    "pandas": "datasets",
    "pyarrow": "datasets",
    "pydantic": "fastapi",
    "starlette": "fastapi",
    "tokenizers": "transformers",
    "triton": "torch",
}


def test_every_import_of_the_package_is_declared():
    """A package that only the developer's machine happens to have fails here, not for users."""
    lines = [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    brought = packages_distributions()
    missing = set()
    for path in sorted(ROOT.rglob("*.py")):
        for module in imported(path):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top == "moe_adapt":
                continue
            names = {canonicalize_name(name) for name in [*brought.get(top, []), BROUGHT_BY.get(top, top)]}
            if not names & declared:
                missing.add(f"{path.relative_to(ROOT)}: {top}")
    assert sorted(missing) == []


def test_require_and_lazy_modules():
    require("a test", "json")
    with pytest.raises(UserError, match="a test needs no_such_module, which is not installed"):
        require("a test", "no_such_module")
    assert LazyModule("math").floor(1.5) == 1
    with pytest.raises(ModuleNotFoundError):
        LazyModule("no_such_module").name  # noqa: B018


def test_a_requirement_that_another_library_misses_is_one_line():
    told = unmet(ModuleNotFoundError("Requirement 'mlflow>=1.0.0' not met. HINT: Try running ..."), "fit")
    assert str(told) == "fit: an option needs mlflow: pip install 'mlflow>=1.0.0'."
    assert unmet(ModuleNotFoundError("No module named 'x'"), "fit") is None

"""Names of earlier releases are the modules of today, not copies of them."""

import importlib
import subprocess
import sys

import pytest

from moe_adapt.renamed import MOVED, new_name


@pytest.mark.parametrize("old", MOVED)
def test_old_name_is_the_new_module(old):
    with pytest.warns(DeprecationWarning, match=r"is now moe_adapt\."):
        sys.modules.pop(f"moe_adapt.{old}", None)
        module = importlib.import_module(f"moe_adapt.{old}")
    assert module is importlib.import_module(f"moe_adapt.{MOVED[old]}")
    assert module.__spec__.name == f"moe_adapt.{MOVED[old]}"


def test_one_copy_of_a_class_below_a_moved_package():
    script = (
        "from moe_adapt.learners.driftmoe.classifier import DriftMoEClassifier as old\n"
        "from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier as new\n"
        "from moe_adapt.training.data import ImageArrays\n"
        "from moe_adapt.evaluation.trace import RoutingTrace\n"
        "from moe_adapt.optim import parameter_groups\n"
        "assert old is new"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_other_names_stay_unknown():
    assert new_name("moe_adapt.training.stream") is None
    assert new_name("training.data") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("moe_adapt.training.cli.absent")

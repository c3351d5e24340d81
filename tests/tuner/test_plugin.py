"""Registration with PEFT."""

import importlib
import subprocess
import sys

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING

import moe_adapt
import moe_adapt.tuner
from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraModel, peft_plugin


def test_the_type_is_an_enum_member_with_our_classes():
    member = PeftType("ROUTED_LORA")
    assert member is PeftType.ROUTED_LORA
    assert member in list(PeftType)
    assert member.value == "ROUTED_LORA"
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is RoutedLoraConfig
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "moe_adapt_"


def test_registering_again_changes_nothing():
    before = list(PeftType)
    moe_adapt.register()
    peft_plugin.register_method(RoutedLoraConfig, RoutedLoraModel)
    importlib.reload(moe_adapt.tuner)
    assert list(PeftType) == before


def test_a_peft_that_refuses_is_told_in_one_sentence(monkeypatch):
    def refuse(**_):
        raise ValueError("no door")

    monkeypatch.setattr(peft_plugin, "register_peft_method", refuse)
    with pytest.raises(UserError, match=r"cannot be registered with PEFT .* \(no door\)"):
        peft_plugin.register_method(RoutedLoraConfig, RoutedLoraModel)
    monkeypatch.undo()
    peft_plugin.register_method(RoutedLoraConfig, RoutedLoraModel)


def test_importing_the_package_does_not_import_peft():
    code = (
        "import sys, moe_adapt; print('peft' in sys.modules); "
        "moe_adapt.register(); print('peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]

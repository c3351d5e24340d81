"""Adapters from elsewhere: damaged, foreign or hostile folders end in one clear sentence."""

import copy
import errno
import json
import os
import random
import shutil
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.hub.export import export_model
from moe_adapt.hub.load import check_adapter_folder, convert_pickle, load_adapter
from moe_adapt.tuner import RoutedLoraConfig
from tests.hub.tiny import build_base, build_model, logits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A small adapter with frozen and trainable experts, and the content of its files."""
    config = RoutedLoraConfig(method="top_k", target_modules=["0", "2"], num_experts=3, r=2)
    model = get_peft_model(base(), config)
    model.base_model.freeze_experts([1])
    folder = export_model(model, tmp_path_factory.mktemp("sound") / "adapter").folder
    (folder / "export.json").unlink()  # its hash would find every change before the weights are read
    return folder, json.loads((folder / CONFIG).read_text()), (folder / WEIGHTS).read_bytes()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 2**63, 1e300, -0.0, float("nan"), float("inf")]),
    st.sampled_from(["", "linear", "LORA", "../../etc/passwd", "(", ".*", "default", "\x00", "é" * 50]),
    st.lists(st.integers(-2, 5), max_size=4),
    st.dictionaries(st.sampled_from(["name", "k", "0", "default", "weight"]), st.integers(-2, 9), max_size=3),
)


def leaves(value, path=()):
    """Yield the path of everything inside nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


@st.composite
def damages(draw, config, weights, values=VALUES):
    """Draw a damaged configuration and damaged weights."""
    config = copy.deepcopy(config)
    kind = draw(
        st.sampled_from(["replace", "replace", "replace", "remove", "add", "text", "cut", "flip", "swap"])
    )
    if kind in ("replace", "remove", "add"):
        for _ in range(draw(st.integers(1, 3))):
            *parents, last = draw(st.sampled_from(sorted(leaves(config), key=str)))
            place = config
            for key in parents:
                place = place[key]
            if kind == "replace":
                place[last] = draw(values)
            elif kind == "add" and isinstance(place, dict):
                place[draw(st.text(string.ascii_letters, max_size=6))] = draw(values)
            elif isinstance(place, dict):
                del place[last]
    text = json.dumps(config)
    if kind == "text":
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.text(max_size=5)) + text[start + draw(st.integers(0, 20)) :]
    if kind == "cut":
        weights = weights[: draw(st.integers(0, len(weights) - 1))]
    if kind == "flip":
        spoilt = bytearray(weights)
        for _ in range(draw(st.integers(1, 8))):
            spoilt[draw(st.integers(0, min(len(spoilt), 2000) - 1))] = draw(st.integers(0, 255))
        weights = bytes(spoilt)
    if kind == "swap":
        weights, text = text.encode(), weights.decode("latin-1")
    return text, weights


@pytest.mark.filterwarnings("ignore")
def test_a_thousand_damaged_folders_end_in_clear_errors(adapter, tmp_path):
    _, config, weights = adapter
    outcomes = {"loaded": 0, "refused": 0}

    @settings(max_examples=1000)
    @given(damages(config, weights))
    def attempt(damage):
        (tmp_path / CONFIG).write_text(damage[0], encoding="utf-8", errors="replace")
        (tmp_path / WEIGHTS).write_bytes(damage[1])
        try:
            model = load_adapter(base(), tmp_path)
        except UserError as mistake:
            outcomes["refused"] += 1
            assert str(mistake).endswith("."), mistake
            assert len(str(mistake)) < 900
        else:
            outcomes["loaded"] += 1
            assert model(torch.zeros(1, 3)).shape == (1, 2)

    attempt()
    assert outcomes["refused"] >= 500
    assert outcomes["loaded"] >= 50, "harmless changes are accepted"


def edited(folder, to, change):
    shutil.copytree(folder, to)
    config = json.loads((to / CONFIG).read_text())
    change(config)
    (to / CONFIG).write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["sites"]["0"].update(num_experts=10**9), "order of a layer"),
        (lambda c: c["sites"].update({"9": c["sites"]["0"]}), "do not belong together"),
        (lambda c: c["sites"]["0"].update(order=[0, 0, 0]), "order of a layer's"),
        (lambda c: c["sites"]["0"].update(frozen=7), "7 frozen ones"),
        (lambda c: c["sites"]["0"].update(rows=[0, 0, 7]), "rows of a router"),
        (lambda c: c["sites"]["0"].update(origins=[["a"], []]), "origins of a layer"),
        (lambda c: c.update(sites=None), "names no layers"),
        (lambda c: c.update(sites=None, experts_from=["someone/else"]), "experts_from exclude"),
        (lambda c: c.update(scorer="os.system"), "unknown scorer"),
        (lambda c: c.update(peft_type="SOMETHING"), "of type 'SOMETHING'"),
        (lambda c: c.update(format_version="1"), "format version '1'"),
    ],
)
def test_configurations_that_ask_for_something_else(adapter, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        load_adapter(base(), edited(adapter[0], tmp_path / "edited", change))


def test_deeply_nested_json_is_no_way_to_crash(adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "deep")
    (tmp_path / "deep" / CONFIG).write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"not an adapter.s configuration"):
        check_adapter_folder(tmp_path / "deep")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_not_opened(adapter, tmp_path):
    folder, trap = tmp_path / "pickled", tmp_path / "sprung"
    shutil.copytree(adapter[0], folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin only, a pickle"):
        load_adapter(base(), folder)
    with pytest.raises(UserError, match="trust=True"):
        convert_pickle(folder)
    convert_pickle(folder, trust=True)
    load_adapter(base(), folder)
    (folder / WEIGHTS).unlink()
    torch.save({"x": Trap(trap)}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="not a file of tensors alone"):
        convert_pickle(folder, trust=True)
    assert not trap.exists()
    assert not (folder / WEIGHTS).exists()


def test_a_full_disk_leaves_the_old_export(tmp_path, monkeypatch):
    model = build_model()
    folder = export_model(model, tmp_path / "adapter").folder

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("moe_adapt.hub.export.write_json", full)
    with pytest.raises(UserError, match="no space left"):
        export_model(build_model(num_experts=2), folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(logits(load_adapter(build_base(), folder)), logits(model))


def test_an_adapter_of_another_base_says_so(adapter, tmp_path):
    with pytest.raises(UserError, match="does not fit this Sequential"):
        load_adapter(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(4, 2)), adapter[0])
    with pytest.raises(UserError, match="does not fit this Sequential"):
        load_adapter(nn.Sequential(nn.ReLU()), adapter[0])
    tensors = load_file(adapter[0] / WEIGHTS)
    shutil.copytree(adapter[0], tmp_path / "nan")
    name = random.Random(0).choice(sorted(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, tmp_path / "nan" / WEIGHTS)
    with pytest.raises(UserError, match="not finite"):
        load_adapter(base(), tmp_path / "nan")


def test_a_changed_tensor_is_found_before_anything_is_loaded(tmp_path, monkeypatch):
    config = RoutedLoraConfig(method="top_k", target_modules=["0"], num_experts=2, r=2)
    folder = export_model(get_peft_model(base(), config), tmp_path / "adapter").folder
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / WEIGHTS)
    monkeypatch.setattr("moe_adapt.hub.load.PeftModel", None)
    with pytest.raises(UserError, match=r"its hash is not that of export\.json"):
        load_adapter(base(), folder)

"""Push and pull against a Hub of our own, and what is said when something fails."""

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel

from moe_adapt.errors import UserError
from moe_adapt.hub.export import export_experts, export_model
from moe_adapt.hub.load import load_adapter
from moe_adapt.hub.remote import fetch_folder, looks_like_repository, push_folder, repository
from tests.hub.tiny import build_base, build_model, logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = build_model()
    folder = export_model(model, tmp_path_factory.mktemp("export") / "tales").folder
    return model, folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_round_trip(hub, exported):
    model, folder = exported
    address = push_folder(folder, "me/tales")
    assert address.startswith(f"{hub.url}/me/tales/commit/")
    assert len(hub.repositories["me/tales"].commits) == 2, "creation and one commit"
    stored = hub.repositories["me/tales"].commits[-1][1]
    assert {name: data for name, data in stored.items() if name != ".gitattributes"} == content(folder)
    assert torch.equal(logits(load_adapter(build_base(), "me/tales")), logits(model))
    assert torch.equal(logits(load_adapter(build_base(), "hf://me/tales")), logits(model))


def test_a_revision_pins_the_adapter(hub, exported, tmp_path):
    model, folder = exported
    first = push_folder(folder, "me/tales").rpartition("/")[2]
    other = build_model(num_experts=2)
    push_folder(export_model(other, tmp_path / "tales").folder, "me/tales", message="Two experts")
    assert torch.equal(logits(load_adapter(build_base(), "me/tales", revision=first)), logits(model))
    assert torch.equal(logits(load_adapter(build_base(), "me/tales")), logits(other))
    with pytest.raises(UserError, match="me/tales has no such revision"):
        load_adapter(build_base(), "me/tales", revision="v9")


def test_a_push_removes_what_an_earlier_form_left(hub, exported, tmp_path):
    model, folder = exported
    push_folder(folder, "me/tales")
    experts = export_experts(model, tmp_path / "experts").folder
    push_folder(experts, "me/tales")
    names = hub.repositories["me/tales"].commits[-1][1]
    assert "adapter_model.safetensors" not in names
    assert "experts/2/adapter_model.safetensors" in names
    stock = PeftModel.from_pretrained(build_base(), fetch_folder("me/tales"), subfolder="experts/1")
    assert torch.isfinite(logits(stock)).all()


def test_private_repositories(hub, exported, monkeypatch, tmp_path):
    model, folder = exported
    push_folder(folder, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert torch.equal(logits(load_adapter(build_base(), "me/secret")), logits(model))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    with pytest.raises(UserError, match="no repository me/secret that your access token opens"):
        load_adapter(build_base(), "me/secret", revision="main")
    with pytest.raises(UserError, match="no repository me/nothing that your access token opens"):
        load_adapter(build_base(), "me/nothing")
    with pytest.raises(UserError, match="access token") as refused:
        push_folder(folder, "me/more")
    assert f"{folder} is complete and can be pushed again" in str(refused.value)


@pytest.mark.parametrize(
    ("route", "status", "words"),
    [
        ("/commit/", 500, "failed with status 500"),
        ("/preupload/", 403, "may not do this"),
        ("/commit/", 409, "at the same moment"),
        ("/commit/", 507, "no space left"),
    ],
)
def test_a_push_that_fails_leaves_everything_as_it_was(hub, exported, route, status, words):
    _, folder = exported
    push_folder(folder, "me/tales")
    before, local = list(hub.repositories["me/tales"].commits), content(folder)
    hub.fail[route] = status
    with pytest.raises(UserError, match=words) as refused:
        push_folder(folder, "me/tales")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("can be pushed again.")
    assert hub.repositories["me/tales"].commits == before
    assert content(folder) == local
    hub.fail.clear()
    push_folder(folder, "me/tales")


def test_a_hub_that_cannot_be_reached(hub, exported, monkeypatch):
    _, folder = exported
    hub.__exit__()
    with pytest.raises(UserError, match="cannot be reached for me/tales"):
        push_folder(folder, "me/tales")
    with pytest.raises(UserError, match="cannot be reached for me/tales"):
        load_adapter(build_base(), "me/tales")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        load_adapter(build_base(), "me/tales")


def test_what_was_fetched_once_opens_without_a_network(hub, exported, monkeypatch):
    model, folder = exported
    push_folder(folder, "me/tales")
    load_adapter(build_base(), "me/tales")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits(load_adapter(build_base(), "me/tales")), logits(model))


@pytest.mark.parametrize("name", ["../evil.json", "experts/../../evil.json", "/tmp/evil.json"])
def test_file_names_that_lead_out_of_the_folder(hub, exported, tmp_path, name):
    _, folder = exported
    push_folder(folder, "me/tales")
    hub.repositories["me/tales"].commits[-1][1][name] = b"{}"
    before = {path for path in tmp_path.rglob("evil*")}
    with pytest.raises(UserError, match=r"answer for me/tales is not used: Invalid filename"):
        load_adapter(build_base(), "me/tales")
    assert {path for path in tmp_path.rglob("evil*")} == before


def test_names():
    assert looks_like_repository("hf://me/tales")
    assert not looks_like_repository("adapters")
    for wrong in ("tales", "a/b/c", "me/ta les", "me/..", "hf://"):
        with pytest.raises(UserError, match="repository"):
            repository(wrong)


def test_only_exports_are_pushed(hub, tmp_path):
    (tmp_path / "diary.json").write_text("{}")
    with pytest.raises(UserError, match="no exported adapter"):
        push_folder(tmp_path, "me/diary")
    assert hub.requests == []

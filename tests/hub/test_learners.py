"""Learners as folders: every kind opens with equal answers, and what is wrong is told in one sentence."""

import json
import pickle
from functools import partial

import pytest
import torch
from huggingface_hub import ModelCard

import moe_adapt.backbones
from moe_adapt.checks import ToyAnswerer, ToyEncoder, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.hub.card import About
from moe_adapt.hub.published import LEARNER_FILE, TENSORS_FILE, content_hash
from moe_adapt.learners import LEARNERS, Care, FineTuning, Learner, NearestMean, RanPac, Ridge
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.optim.groups import momentum_sgd
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner import RoutedLoraConfig
from tests.learners.care.encoders import ENCODERS, make_stream
from tests.learners.care.test_learner import SMALL
from tests.learners.instructions import toys

CLASSES = sorted(
    name for name in LEARNERS if not issubclass(LEARNERS.get(name), InstructionLearner) and name != "care"
)
OPTIONS = {
    "ranpac": {"proj_dim": 40},
    "fine_tuning": {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
}


def whole_batch(stream):
    examples, _ = stream.test_until(len(stream) - 1)
    return stream.collate([examples[row] for row in range(len(examples))])


def learned(name, tasks=2):
    """A learner of a toy stream, and the stream."""
    torch.manual_seed(0)
    stream = gaussian_stream(tasks=tasks, train=6, test=4)
    learner = LEARNERS.get(name)(ToyEncoder(), **OPTIONS.get(name, {}))
    StreamRunner().run(learner, stream)
    return learner.eval(), stream


def same_state(one, other):
    own, state = one.learner_state(), other.learner_state()
    assert own.keys() == state.keys()
    for name, value in own.items():
        if isinstance(value, dict):
            assert value.keys() == state[name].keys()
            assert all(torch.equal(value[key], state[name][key]) for key in value)
        else:
            assert torch.equal(value.nan_to_num(), state[name].nan_to_num()), name


@pytest.mark.parametrize("name", CLASSES)
def test_every_learner_of_classes(name, tmp_path):
    learner, stream = learned(name)
    folder = learner.save_pretrained(tmp_path / "kept")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    loaded = type(learner).from_pretrained(folder, backbone=ToyEncoder())
    assert loaded.settings() == learner.settings()
    assert loaded.history == learner.history
    same_state(loaded, learner)
    batch = whole_batch(stream)
    with torch.no_grad():
        assert torch.equal(loaded.scores(batch), learner.scores(batch))


class Pass:
    """A run that only passes over data."""

    def __init__(self, stream):
        self.stream = stream

    def batches(self, data, batch_size=None):
        yield self.stream.collate([data[row] for row in range(len(data))])


def test_an_opened_learner_goes_on(tmp_path):
    kept, stream = learned("slda")
    stream = gaussian_stream(tasks=3, train=6, test=4)
    opened = Learner.from_pretrained(kept.save_pretrained(tmp_path / "kept"), backbone=ToyEncoder())
    for learner in (kept, opened):
        learner.begin_task(stream.task(2))
        learner.learn_task(stream.task(2), Pass(stream))
    same_state(opened, kept)


@pytest.mark.parametrize("kind", ["timm", "bert"])
def test_care(kind, tmp_path):
    stream = make_stream(text=kind == "bert", sizes=(2, 2), train=4, test=4)
    torch.manual_seed(1)
    care = Care(ENCODERS[kind](), SMALL, epochs=2, batch_size=8, alignment_epochs=1)
    StreamRunner().run(care, stream)
    folder = care.save_pretrained(tmp_path / "care")
    loaded = Care.from_pretrained(folder, backbone=ENCODERS[kind]())
    batch = whole_batch(stream)
    with torch.no_grad():
        assert torch.equal(loaded.scores(batch), care.eval().scores(batch))
    assert loaded.mixture == SMALL
    other = ENCODERS[kind]()
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    with pytest.raises(UserError, match="trained over other pretrained weights"):
        Care.from_pretrained(folder, backbone=other)
    with pytest.raises(UserError, match="trained over other pretrained weights"):
        Care.from_pretrained(folder, backbone=ENCODERS["vit" if kind == "timm" else "distilbert"]())


FAST = ["same", "dymoe"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(toys.ROUTED) if name not in FAST]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_learners_of_instructions(name, tmp_path):
    stream = toys.stream(2)
    options = {"router_update": "guard"} if name == "same" else {}
    learner = toys.learner(name, **options)
    StreamRunner(attribution=False).run(learner, stream)
    folder = learner.eval().save_pretrained(tmp_path / "kept")
    loaded = type(learner).from_pretrained(folder, backbone=ToyAnswerer())
    same_state(loaded, learner)
    batch = whole_batch(stream)
    with torch.no_grad():
        pairs = zip(loaded.choice_scores(batch), learner.choice_scores(batch), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_an_adapter_and_a_head_from_the_hub(hub, tmp_path):
    tuner = RoutedLoraConfig(method="top_k", target_modules=["0", "2"], num_experts=3, r=2)
    stream = gaussian_stream(tasks=2, train=6, test=4)
    learner = RanPac(ToyEncoder(), tuner, proj_dim=24, epochs=1)
    StreamRunner().run(learner, stream)
    address = learner.push_to_hub("me/ranpac", private=True)
    assert address.startswith(f"{hub.url}/me/ranpac/commit/")
    loaded = RanPac.from_pretrained("me/ranpac", backbone=ToyEncoder())
    batch = whole_batch(stream)
    with torch.no_grad():
        assert torch.equal(loaded.scores(batch), learner.eval().scores(batch))
    assert (loaded.tuner.num_experts, loaded.optimizer) == (3, momentum_sgd)
    assert hub.repositories["me/ranpac"].private


def test_the_backbone_is_built_from_its_public_name(tmp_path, monkeypatch):
    class Public(ToyEncoder):
        def __init__(self, backbone="me/toy"):
            super().__init__()
            self.name = backbone

    learner = NearestMean(Public())
    stream = gaussian_stream(tasks=2, train=6, test=4)
    StreamRunner().run(learner, stream)
    folder = learner.save_pretrained(tmp_path / "kept")
    with pytest.raises(UserError, match="pass it as backbone"):
        NearestMean.from_pretrained(folder)
    monkeypatch.setattr(moe_adapt.backbones, "Public", Public, raising=False)
    learner.save_pretrained(folder, overwrite=True)
    loaded = NearestMean.from_pretrained(folder)
    assert loaded.backbone.name == "me/toy"
    data = ModelCard.load(folder / "README.md").data
    assert (data.base_model, data.base_model_relation) == ("me/toy", "adapter")


def test_the_card(tmp_path):
    learner, stream = learned("ridge")
    result = StreamRunner(tmp_path / "run").run(Ridge(ToyEncoder()), stream).to_dict()
    about = About(
        dataset="me/points",
        task="text-classification",
        stream=result,
        manifest=result["manifest"],
        license="mit",
    )
    folder = learner.save_pretrained(tmp_path / "ridge", about=about)
    card = ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.datasets) == ("moe-adapt", "mit", ["me/points"])
    assert {"moe-adapt", "continual-learning", "Ridge"} <= set(data.tags)
    found = {item.metric_name: item.metric_value for item in data.eval_results}
    assert found["stream/final_accuracy"] == result["metrics"]["final_accuracy"]
    for words in (
        "## Task by task",
        "| after",
        "class 3",
        'Ridge.from_pretrained("PATH',
        "ToyEncoder",
        "width=8",
    ):
        assert words in card.text, words
    assert str(tmp_path) not in card.text
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 0
    assert json.loads((folder / "export.json").read_text())["form"] == "learner"


def test_mistakes(tmp_path):
    learner, _ = learned("ncm")
    folder = learner.save_pretrained(tmp_path / "kept")
    with pytest.raises(UserError, match="not empty"):
        learner.save_pretrained(folder)
    learner.save_pretrained(folder, overwrite=True)
    with pytest.raises(UserError, match="it holds a NearestMean, not a Ridge"):
        Ridge.from_pretrained(folder, backbone=ToyEncoder())
    with pytest.raises(UserError, match="other pretrained weights"):
        NearestMean.from_pretrained(folder, backbone=ToyEncoder(seed=1))
    with pytest.raises(UserError, match="other pretrained weights"):
        NearestMean.from_pretrained(folder, backbone=ToyEncoder(width=6))
    with pytest.raises(UserError, match="holds no learner"):
        NearestMean.from_pretrained(tmp_path, backbone=ToyEncoder())
    adapted = ToyEncoder()
    adapted.adapt(RoutedLoraConfig(method="top_k", target_modules=["0"], num_experts=2, r=2))
    with pytest.raises(UserError, match="an adapter already"):
        NearestMean.from_pretrained(folder, backbone=adapted)
    odd = FineTuning(ToyEncoder(), optimizer=lambda params: torch.optim.SGD(params, 0.1))
    with pytest.raises(UserError, match=r"optimizer=.* cannot be kept"):
        odd.save_pretrained(tmp_path / "odd")
    homely = FineTuning(ToyEncoder(), tunes="head")
    homely.tuner = RoutedLoraConfig(method="top_k", experts_from=[str(folder)])
    with pytest.raises(UserError, match="publish them"):
        homely.save_pretrained(tmp_path / "odd")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "learner.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="a pickle"):
        Learner.from_pretrained(tmp_path)


def test_a_learner_of_ones_own(tmp_path):
    class Mine(NearestMean):
        """Not registered."""

    stream = gaussian_stream(tasks=2, train=6, test=4)
    learner = Mine(ToyEncoder())
    StreamRunner().run(learner, stream)
    folder = learner.save_pretrained(tmp_path / "mine")
    assert type(Mine.from_pretrained(folder, backbone=ToyEncoder())) is Mine
    with pytest.raises(UserError, match=r"open it with Mine\.from_pretrained"):
        Learner.from_pretrained(folder, backbone=ToyEncoder())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "upgrade"),
        ({"kind": "tale"}, "its kind is 'tale'"),
        ({"class": "Popen"}, "none of ours"),
        ({"arguments": {"optimizer": {"is": "os.system", "options": {}}}}, "none of ours"),
        ({"arguments": {"spell": 1}}, "no argument of NearestMean"),
        ({"history": [{"index": 0, "name": "a", "classes": [10**9], "num_seen": 10**9}]}, "do not follow"),
        ({"inner": {"head.mean": ["a"]}}, "damaged"),
    ],
)
def test_foreign_content_with_a_right_hash(change, words, tmp_path):
    learner, _ = learned("ncm")
    folder = learner.save_pretrained(tmp_path / "kept")
    content = json.loads((folder / LEARNER_FILE).read_text())
    del content["hash"]
    content |= change
    (folder / LEARNER_FILE).write_text(json.dumps({**content, "hash": content_hash(content)}))
    with pytest.raises(UserError, match=words):
        NearestMean.from_pretrained(folder, backbone=ToyEncoder())


def test_a_changed_file_is_noticed(tmp_path):
    learner, _ = learned("ncm")
    folder = learner.save_pretrained(tmp_path / "kept")
    weights = (folder / TENSORS_FILE).read_bytes()
    (folder / TENSORS_FILE).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged"):
        NearestMean.from_pretrained(folder, backbone=ToyEncoder())
    (folder / TENSORS_FILE).unlink()
    with pytest.raises(UserError, match="what was learned"):
        NearestMean.from_pretrained(folder, backbone=ToyEncoder())

"""A LLaVA made of a tiny vision tower and a tiny Llama: built, adapted, trained over rendered questions."""

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from moe_adapt.backbones.vision_language import VisionLanguageAnswerer
from moe_adapt.errors import UserError
from moe_adapt.learners.instructions import DyMoE
from moe_adapt.streams import InstructionStream
from moe_adapt.streams.rendered import rendered_tasks
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner import RoutedLoraConfig
from tests.training.tiny import tiny_llama


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(root / "vision")
    return str(root / "vision"), str(tiny_llama(root / "language"))


def model(parts):
    return VisionLanguageAnswerer(parts[1], vision=parts[0], max_length=64)


def test_parts_keep_their_weights(parts):
    built = model(parts).model
    tower = CLIPVisionModel.from_pretrained(parts[0])
    own = built.model.vision_tower.state_dict()
    assert all(torch.equal(own[name], value) for name, value in tower.state_dict().items())


def test_the_image_matters_the_stream_is_learned_and_the_learner_opens_again(parts, tmp_path):
    stream = InstructionStream("rendered", order=["colour", "place"], max_train=8, max_test=4)
    torch.manual_seed(0)
    tuner = RoutedLoraConfig(
        method="dymoe", num_experts=2, selector={"name": "top_k", "k": 2}, r=2, dropout=0.0
    )
    learner = DyMoE(model(parts), tuner, batch_size=4, lr=1e-2)
    sites = [layer.site for layer in learner.layers()]
    assert any("vision_tower" in site for site in sites) and any("projector" in site for site in sites)
    result = StreamRunner().run(learner, stream)
    assert np.isfinite(result.matrix.rates()[1]).all()
    samples, _ = stream.test_until(0)
    batch = stream.collate([samples[0], samples[1]])
    with torch.no_grad():
        seen = torch.stack(learner.eval().choice_scores(batch))
        blank = torch.stack(learner.choice_scores({**batch, "image": torch.zeros_like(batch["image"])}))
    assert not torch.allclose(seen, blank, atol=1e-5)
    learner.save_pretrained(tmp_path / "kept")
    opened = DyMoE.from_pretrained(tmp_path / "kept", backbone=model(parts))
    with torch.no_grad():
        assert torch.equal(torch.stack(opened.choice_scores(batch)), seen)
    with pytest.raises(UserError, match="pass it as backbone"):
        DyMoE.from_pretrained(tmp_path / "kept")


def test_bad_images(parts):
    built = model(parts)
    task = rendered_tasks(["colour"], train=1, test=1, pixels=42)[0]
    batch = {"prompt": ["p"], "answer": ["red"], "choices": [["red"]], "row": torch.tensor([0])}
    with pytest.raises(UserError, match="needs an image"):
        built.answer_loss(batch)
    with pytest.raises(UserError, match="28 pixels, these have 42"):
        built.answer_loss({**batch, "image": task.train[0].image[None]})
    with pytest.raises(UserError, match="no question 'color'"):
        rendered_tasks(["color"])

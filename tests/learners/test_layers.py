"""Closed-form heads over several layers of an encoder: reading blocks, choosing among them, publishing."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from moe_adapt.backbones import Encoder, TextEncoder
from moe_adapt.checks import gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import FeCam, NearestMean, RanPac, Ridge, Slda, WhitenedMean
from moe_adapt.learners.heads import SldaHead
from moe_adapt.learners.heads.layer_choice import choose_layers
from moe_adapt.training.stream import StreamRunner

BERT = BertConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    BertModel(BERT).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def words():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    return {"input_ids": torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0]]), "attention_mask": mask}


def test_layers_are_the_means_of_the_hidden_states(folder):
    batch = words()
    encoder = TextEncoder(folder, pooling="mean", layers=[2, 3]).eval()
    states = encoder.model(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = [(states[number] * mask).sum(1) / mask.sum(1) for number in (2, 3)]
    torch.testing.assert_close(encoder(batch), torch.cat(expected, dim=1))
    assert (encoder.width, encoder.num_layers, encoder.settings()["layers"]) == (16, 2, [2, 3])


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_the_last_layer_is_the_encoders_own(folder, pooling):
    batch = words()
    plain = TextEncoder(folder, pooling=pooling).eval()
    encoder = TextEncoder(folder, pooling=pooling, layers=2).eval()
    assert encoder.layers == [3, 4]
    assert torch.equal(encoder(batch)[:, 8:], plain(batch))


@pytest.mark.parametrize("layers", [0, 5, [0], [2, 9], []])
def test_layers_that_are_not_there_are_refused(folder, layers):
    with pytest.raises(UserError, match="numbers of blocks from 1 to 4"):
        TextEncoder(folder, layers=layers)


class Stacked(Encoder):
    """Layers of which only the second tells classes apart."""

    def __init__(self, useful=1, layers=3):
        super().__init__(nn.Sequential(nn.Identity()), "stacked", 8)
        self.useful, self.num_layers, self.width = useful, layers, 8 * layers

    def settings(self):
        return {**super().settings(), "useful": self.useful, "layers": self.num_layers}

    def forward(self, batch):
        generator = torch.Generator().manual_seed(int(batch["x"].abs().sum() * 1e4) % 2**31)
        noise = torch.randn(self.num_layers, *batch["x"].shape, generator=generator)
        noise[self.useful] = batch["x"]
        return torch.cat(list(noise), dim=1)


LEARNERS = {
    "ncm": NearestMean,
    "slda": lambda encoder, layers: Slda(encoder, shrinkage="oas", layers=layers),
    "ridge": Ridge,
    "fecam": FeCam,
    "ranpac": lambda encoder, layers: RanPac(encoder, proj_dim=40, layers=layers),
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("useful", [0, 2])
def test_the_layer_that_tells_classes_apart_is_chosen(name, useful):
    learner = LEARNERS[name](Stacked(useful), layers=1)
    result = StreamRunner().run(learner, gaussian_stream())
    assert int(learner.first_layer) == useful
    assert result.matrix.rates()[3].mean() > 0.8
    assert learner.report()["first_layer"] == learner.report()["last_layer"] == useful + 1


def test_the_choice_is_kept_in_the_state_and_by_publishing(tmp_path):
    stream = gaussian_stream()
    learner = Slda(Stacked(2), layers=2)
    StreamRunner().run(learner, stream)
    assert int(learner.first_layer) == 1
    learner.save_pretrained(tmp_path / "slda")
    again = Slda.from_pretrained(tmp_path / "slda", backbone=Stacked(2))
    batch = stream.collate([stream.test[0], stream.test[1]])
    assert torch.equal(again.scores(batch), learner.scores(batch))


def test_whitened_means_read_the_last_layers_without_choosing():
    stream = gaussian_stream()
    learner = WhitenedMean(Stacked(2), layers=2)
    result = StreamRunner().run(learner, stream)
    assert learner.report() == {"first_layer": 2, "last_layer": 3}
    assert (learner.head.width, learner.head.layers) == (16, 2)
    assert result.matrix.rates()[3].mean() > 0.8
    assert (WhitenedMean(Stacked()).head.width, WhitenedMean(Stacked()).head.layers) == (24, 3)


def test_more_layers_than_the_encoder_gives_are_refused():
    with pytest.raises(UserError, match="it gives 3"):
        Slda(Stacked(), layers=4)


def test_layers_as_good_as_the_best_give_way_to_higher_ones():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(10)
    good = torch.eye(4, 6)[labels] * 4 + torch.randn(40, 6, generator=generator)
    noise = torch.randn(40, 6, generator=generator)
    features = torch.cat([good, good + 0.3 * noise, noise], dim=1)
    first, accuracies = choose_layers(features, labels, num_layers=3, count=1)
    assert first == 1
    assert accuracies[2] < 0.6 < accuracies[0]


def test_one_sample_per_class_cannot_choose():
    with pytest.raises(UserError, match="two samples or more"):
        choose_layers(torch.randn(3, 6), torch.arange(3), num_layers=3, count=1)


def test_oas_is_free_of_scale_and_order():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(5)
    x = torch.randn(20, 12, generator=generator, dtype=torch.float64) + labels[:, None]
    probe = torch.randn(30, 12, generator=generator, dtype=torch.float64) * 2 + 1
    answers = []
    for scale, order in (
        (1.0, slice(None)),
        (1e12, slice(None)),
        (1e-9, torch.randperm(20, generator=generator)),
    ):
        head = SldaHead(12, shrinkage="oas")
        for part in (slice(0, 7), slice(7, 20)):
            head.update(scale * x[order][part], labels[order][part])
        answers.append(head(scale * probe))
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], rtol=1e-6, atol=1e-6)


def test_one_sample_per_class_is_the_nearest_mean():
    head = SldaHead(3, shrinkage="oas")
    head.update(torch.eye(3), torch.arange(3))
    assert head(torch.eye(3)).argmax(dim=1).tolist() == [0, 1, 2]

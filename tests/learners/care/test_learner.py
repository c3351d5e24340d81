"""CaRE as a learner: on every kind of encoder, resumed, aligned, ensembled."""

import copy
import dataclasses
import warnings

import pytest
import torch

from moe_adapt.backbones.pretrained import enable_gradient_checkpointing
from moe_adapt.checks import check_learner
from moe_adapt.errors import UserError
from moe_adapt.learners.care import Care, CareBlock, CareOptions, Scope
from moe_adapt.learners.care.reference import dense_forward
from moe_adapt.training.stream import StreamRunner
from tests.learners.care.encoders import ENCODERS, Centred, Tokens, make_stream

SMALL = CareOptions(rank=4, shared_rank=4, dropout=0.0)


def learner(kind="timm", mixture=SMALL, **settings):
    encoder = ENCODERS[kind]()
    torch.manual_seed(1)
    options = {"epochs": 4, "batch_size": 8, "lr": 0.02, "alignment_epochs": 2, **settings}
    return Care(encoder, mixture, **options)


def grown(stream, kind="timm", mixture=SMALL, **settings):
    """A learner that went through the stream without training, with random values wherever it grew."""
    care = learner(kind, mixture, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    for index in range(len(stream)):
        care.begin_task(stream.task(index))
    care.end_task(None, None)
    for block in care.blocks:
        for buffer in block.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return care


def batch_of(stream, until):
    examples, _ = stream.test_until(until)
    return stream.collate([examples[i] for i in range(len(examples))])


@pytest.mark.parametrize("kind", ["dinov2", "bert"])
def test_learns_and_leaves_the_encoder_alone(kind):
    stream = make_stream(text=kind == "bert")
    encoder = Centred(ENCODERS[kind](), batch_of(stream, 2))
    torch.manual_seed(1)
    row = "mean" if kind == "bert" else "first"
    options = {"epochs": 4, "batch_size": 8, "lr": 0.02, "alignment_epochs": 10, "alignment_lr": 0.1}
    care = Care(encoder, SMALL, row=row, **options)
    before = {name: tensor.clone() for name, tensor in care.backbone.state_dict().items()}
    result = StreamRunner().run(care, stream)
    assert result.matrix.rates()[2].mean() > 0.4
    assert all(torch.equal(before[name], tensor) for name, tensor in care.backbone.state_dict().items())
    assert not [name for name, p in care.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", ["timm", "bert"])
@pytest.mark.parametrize(
    "mixture", [SMALL, CareOptions(rank=4, router="keys", shared="ema")], ids=["plain", "linear"]
)
def test_the_whole_model_equals_its_dense_form(kind, mixture, monkeypatch):
    stream = make_stream(text=kind == "bert", sizes=(2, 3, 2, 2, 2, 2, 2, 2))
    care = grown(stream, kind, mixture)
    batch = batch_of(stream, 7)
    with torch.no_grad():
        ours = care.scores(batch)
        monkeypatch.setattr(CareBlock, "forward", dense_forward)
        torch.testing.assert_close(ours, care.scores(batch), rtol=1e-5, atol=1e-4)


def test_a_new_triplet_leaves_the_backbone_bit_equal():
    for kind in ENCODERS:
        stream = make_stream(text="bert" in kind)
        care = learner(kind, CareOptions(rank=4)).eval()
        care.begin_task(stream.task(0))
        batch = batch_of(stream, 0)
        with torch.no_grad():
            adapted = care.encode(batch)
            care.hooks.remove()
            assert torch.equal(adapted, care.backbone(batch)), kind


def test_resuming_ends_with_the_same_bits(tmp_path):
    stream, whole = make_stream(), learner(mixture=CareOptions(rank=4, shared="ema"))
    expected = StreamRunner(tmp_path / "whole").run(whole, stream)

    class Stops(Care):
        def end_task(self, task, run):
            if task.index == 2:
                raise RuntimeError("power cut")
            super().end_task(task, run)

    stopping = learner(mixture=CareOptions(rank=4, shared="ema"))
    stopping.__class__ = Stops
    stopping.settings = whole.settings
    with pytest.raises(RuntimeError, match="power cut"):
        StreamRunner(tmp_path / "cut").run(stopping, stream)
    resumed = learner(mixture=CareOptions(rank=4, shared="ema"))
    result = StreamRunner(tmp_path / "cut").run(resumed, stream, resume=True)
    assert (result.matrix.correct == expected.matrix.correct).all()
    assert whole.learner_state().keys() == resumed.learner_state().keys()
    for name, tensor in whole.learner_state().items():
        assert torch.equal(tensor, resumed.learner_state()[name]), name


@pytest.mark.parametrize("covariance", ["full", "diagonal", "low_rank"])
def test_alignment_moves_the_heads_and_nothing_else(covariance):
    stream = make_stream()
    care = grown(stream, covariance=covariance, covariance_rank=3)
    for index in range(3):
        batch = stream.collate([stream.task(index).train[i] for i in range(24)])
        with torch.no_grad():
            care.gaussians.fit(care.encode(batch), batch["labels"])
    before = copy.deepcopy(care.state_dict())
    care._align(0)
    changed = {name for name, value in care.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"heads.frozen_weight"}


def test_without_alignment_old_heads_never_move():
    heads = []

    class Notes(Care):
        def end_task(self, task, run):
            super().end_task(task, run)
            heads.append(self.heads.frozen("weight").clone())

    care = learner(alignment=False, epochs=1)
    care.__class__ = Notes
    StreamRunner().run(care, make_stream())
    assert torch.equal(heads[1][:2], heads[0]) and torch.equal(heads[2][:4], heads[1])
    assert care.gaussians is None


def test_the_ensemble_equals_the_loop_and_counts_its_forwards():
    stream = make_stream()
    care = grown(stream, inference="ensemble")
    batch, calls = batch_of(stream, 2), []
    handle = care.backbone.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        ours = care.scores(batch)
        handle.remove()
        assert len(calls) == 3 + 1
        expected = (20 * care.heads(care.encode(batch))).softmax(1)
        for sample in range(len(ours)):
            best = None
            for task in range(3):
                p = (20 * care.heads(care.encode(batch, Scope(task + 1, True)))[sample]).softmax(0)
                entropy = float(-(p * p.log()).sum())
                if best is None or entropy < best[0]:
                    best = (entropy, p)
            expected[sample] += best[1]
    torch.testing.assert_close(ours, expected)


def test_predictions_do_not_depend_on_the_batch():
    stream = make_stream(text=True)
    care = grown(stream, "bert", row="mean")
    batch = batch_of(stream, 2)
    with torch.no_grad():
        whole = care.scores(batch)
        rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(whole))]
        torch.testing.assert_close(whole, torch.cat([care.scores(row) for row in rows]), rtol=1e-4, atol=1e-4)


def test_padding_does_not_route():
    stream = make_stream(text=True)
    care = grown(stream, "bert", row="mean")
    batch = batch_of(stream, 2)
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 0, 39, batch["input_ids"])}
    with torch.no_grad():
        torch.testing.assert_close(care.scores(batch), care.scores(other))


def test_gradient_checkpointing_changes_nothing():
    stream = make_stream()
    losses, grads = [], []
    for recompute in (False, True):
        care = learner("dinov2", CareOptions(rank=4, dropout=0.3))
        for index in range(2):
            care.begin_task(stream.task(index))
            for p in care.blocks.parameters():
                torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(7))
        if recompute:
            enable_gradient_checkpointing(care.backbone.model)
        care.train()
        if recompute:
            care.backbone.model.train()
        torch.manual_seed(5)
        batch = stream.collate([stream.task(1).train[i] for i in range(8)])
        total = torch.stack(list(care.losses(batch).values())).sum()
        total.backward()
        losses.append(total.detach())
        grads.append({n: p.grad for n, p in care.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
    assert grads[1]["blocks.0.perceptrons.new_weight"].any()


@pytest.mark.slow
def test_training_from_zero_stays_finite_and_falls():
    stream = make_stream(sizes=(4,), train=40)
    care = learner(mixture=CareOptions(rank=8), epochs=15, lr=0.01)
    seen = []
    original = care.losses
    care.losses = lambda batch: seen.append(original(batch)) or seen[-1]
    StreamRunner().run(care, stream)
    totals = [float(sum(loss.values())) for loss in seen]
    assert len(totals) >= 60 and max(totals) <= 2 * totals[0] and totals[-1] < totals[0]


def test_what_it_cannot_learn_is_refused():
    with pytest.raises(UserError, match="one class"):
        learner().begin_task(make_stream(sizes=(1, 2)).task(0))
    learner(mixture=CareOptions(rank=4, normalize_entropy=True)).begin_task(make_stream(sizes=(1, 2)).task(0))
    care = learner()
    care.begin_task(make_stream().task(0))
    with pytest.raises(UserError, match="new classes only"):
        care.begin_task(make_stream().task(0))
    with pytest.raises(UserError, match="computed before"):
        care.encode({"features": torch.zeros(1, 16)})
    with pytest.raises(UserError, match="inference is one of"):
        learner(inference="all")
    with pytest.raises(UserError, match="no transformer block"):
        Care(Tokens(torch.nn.Linear(2, 2)))


#: Class counts, and millions of parameters with and without layer norm at d 768 and 12 blocks.
PUBLISHED = [
    ([10] * 10, 6.23, 6.03),
    ([10] * 20, 12.16, 11.78),
    ([10] * 100, 92.85, 90.99),
    ([100] + [6] * 150, 170.02, 167.22),
    ([5] * 200, 266.78, 263.07),
    ([100] + [3] * 300, 536.11, 530.54),
]


@pytest.mark.parametrize(
    ("sizes", "with_norm", "without"), PUBLISHED, ids=lambda v: str(len(v)) if isinstance(v, list) else ""
)
def test_growth_is_the_formula(sizes, with_norm, without):
    for layer_norm, published in ((True, with_norm), (False, without)):
        with torch.device("meta"):
            block = CareBlock(768, CareOptions(layer_norm=layer_norm, expert_init="fresh"))
            for size in sizes:
                block.grow(size)
        state = {k: v for k, v in block.state_dict().items() if not k.endswith("sizes")}
        total = 12 * sum(v.numel() for v in state.values()) + 768 * sum(sizes)
        tasks, d, r, norm = len(sizes), 768, 16, 2 * 768 * layer_norm
        expert = 2 * d * r + r + 2 * d + norm
        perceptrons = sum(2 * d + (d + 1) * size for size in sizes)
        routers = (d + 1) * tasks * (tasks + 1) // 2
        shared = 2 * d * 64 + 64 + 2 * d + norm
        assert total == 12 * (tasks * expert + perceptrons + routers + shared) + d * sum(sizes)
        assert total / 1e6 == pytest.approx(published, abs=0.006)


def test_the_linear_variant_grows_linearly():
    def routers(tasks):
        with torch.device("meta"):
            block = CareBlock(768, CareOptions(router="keys", expert_init="fresh"))
            for _ in range(tasks):
                block.grow(3)
        return sum(v.numel() for v in block.routers.state_dict().values())

    assert routers(301) == 301 * routers(1) < 0.11 * 769 * 301 * 302 / 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [("bert", {"row": "mean", "mixture": SMALL}), ("timm", {"mixture": CareOptions(rank=4, router="keys")})],
    ids=["bert", "timm"],
)
def test_is_a_good_learner(kind, options):
    stream = make_stream(text=kind == "bert", train=8, test=6)
    check_learner(lambda: learner(kind, epochs=2, **options), stream)


def test_unequal_tasks_are_warned_of_unless_entropies_are_normalised():
    stream = make_stream(text=False, sizes=(2, 3, 3))
    with pytest.warns(UserWarning, match="task 1 has 3 classes, the one before 2") as caught:
        grown(stream)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grown(stream, mixture=dataclasses.replace(SMALL, normalize_entropy=True))


def test_the_learning_rate_falls_to_a_half_and_then_to_zero():
    """Each fit at its start and in its middle: one for the first task, two for the second."""
    rates = []

    class Noting(Care):
        def training_step(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    stream = make_stream(sizes=(2, 2))
    settings = {"epochs": 4, "batch_size": 12, "lr": 0.08, "alignment_epochs": 1}
    StreamRunner().run(Noting(ENCODERS["timm"](), SMALL, **settings), stream)
    whole, first, second = rates[:8], rates[8:12], rates[12:]
    assert (whole[0], whole[4]) == pytest.approx((0.08, 0.04))
    assert (first[0], first[2]) == pytest.approx((0.08, 0.06))
    assert (second[0], second[2]) == pytest.approx((0.04, 0.02))
    assert rates == sorted(whole, reverse=True) + sorted(first + second, reverse=True)

"""The paper preset against an independent derivation with River's trees and a router in torch."""

import numpy as np
import pytest
import torch
from river.tree import HoeffdingTreeClassifier

from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams import synthetic_stream

E, K, EVERY = 6, 2, 64


def derive(rows, weights, biases, retain):
    """Return predictions, routed experts and the final router: a loop over rows, as the paper tells it."""
    trees = [HoeffdingTreeClassifier(grace_period=50, max_share_to_split=1.0) for _ in range(E)]
    layers = [torch.nn.Linear(*w.shape) for w in weights]
    for layer, w, b in zip(layers, weights, biases, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(w.T.copy()), torch.tensor(b.copy())
    router = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    adam = torch.optim.Adam(router.parameters(), lr=2e-3)
    labels, kept, masks, answers, routed = [], [], [], [], []
    for x, y in rows:
        vector = torch.tensor([x[name] for name in sorted(x)], dtype=torch.float32)
        z = router(vector)
        proba = [tree.predict_proba_one(x) or {} for tree in trees]
        full = (
            [{c: p.get(c, 0.0) if sum(p.values()) else 1 / len(labels) for c in labels} for p in proba]
            if labels
            else []
        )
        best = int(z.argmax())
        answers.append(max(sorted(full[best]), key=full[best].get) if full else None)
        if y not in labels:
            labels.append(y)
        full = [{c: p.get(c, 0.0) if sum(p.values()) else 1 / len(labels) for c in labels} for p in proba]
        mask = [float(max(labels, key=p.get) == y) for p in full]
        if not any(mask):
            mask[int(np.argmax([p[y] for p in full]))] = 1.0
        kept.append(z if retain else vector)
        masks.append(mask)
        if len(kept) == EVERY:
            logits = torch.stack(kept) if retain else router(torch.stack(kept))
            adam.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(masks)).backward()
            adam.step()
            kept, masks = [], []
        routed.append(sorted(z.argsort(descending=True, stable=True)[:K].tolist()))
        for e in routed[-1]:
            trees[e].learn_one(x, y)
    return answers, routed, [layer.weight.detach().numpy().T for layer in layers]


@pytest.mark.parametrize("retain", [True, False])
def test_every_row_and_the_router_agree(retain, monkeypatch):
    rows = list(synthetic_stream("RBF_m", 700))
    model = DriftMoEClassifier.paper(n_experts=E, top_k=K, update_every=EVERY, seed=3)
    engine = model._engine
    engine.features.learn(rows[0][0])
    engine.labels.learn(rows[0][1])
    engine._fit()
    start = [w.copy() for w in engine.router.weights], [b.copy() for b in engine.router.biases]
    engine.labels.__init__()
    routed = []
    choose = engine._learners
    monkeypatch.setattr(engine, "_learners", lambda *row: routed.append(choose(*row)) or routed[-1])
    answers = []
    for x, y in rows:
        answers.append(model.predict_one(x))
        model.learn_one(x, y)
    expected = derive(rows, *start, retain)
    assert answers == expected[0]
    assert routed == expected[1]
    assert engine.events["router_steps"] == len(rows) // EVERY
    for ours, theirs in zip(engine.router.weights, expected[2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("mode", ["data", "task"])
def test_pool_and_river_trees_give_the_same_answers(mode):
    models = [DriftMoEClassifier.paper(mode, n_experts=4, seed=2, backend=b) for b in ("array", "river")]
    for x, y in synthetic_stream("RBF_m", 600):
        one, other = (model.predict_proba_one(x) for model in models)
        assert one == pytest.approx(other, abs=1e-8)
        for model in models:
            model.learn_one(x, y)

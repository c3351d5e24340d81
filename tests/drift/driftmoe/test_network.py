"""The numpy network and its Adam against torch."""

import numpy as np
import pytest
import torch

from moe_adapt.drift.driftmoe.network import OnlineNetwork


def network(loss, dropout=0.0, lr=1e-2):
    made = OnlineNetwork(16, dropout, lr, loss, np.random.default_rng(0))
    made.grow(5, 3)
    return made


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_steps_are_those_of_torch(loss):
    made = network(loss)
    layers = [torch.nn.Linear(*w.shape) for w in made.weights]
    for layer, w, b in zip(layers, made.weights, made.biases, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(w.T.copy()), torch.tensor(b.copy())
    reference = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    draw = np.random.default_rng(1)
    for _ in range(20):
        x = draw.normal(size=(8, 5)).astype(np.float32)
        target = np.eye(3, dtype=np.float32)[draw.integers(3, size=8)]
        made.step(x, target)
        logits = reference(torch.tensor(x))
        wanted = torch.tensor(target)
        if loss == "bce":
            value = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            value = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    np.testing.assert_allclose(made.forward(x), reference(torch.tensor(x)).detach().numpy(), atol=1e-4)


def test_growing_changes_no_old_output():
    made = network("bce")
    x = np.random.default_rng(2).normal(size=5).astype(np.float32)
    made.step(x[None], np.ones((1, 3), dtype=np.float32))
    before = made.forward(x)
    made.grow(7, 4)
    np.testing.assert_allclose(made.forward(np.append(x, [0, 0]).astype(np.float32))[:3], before, rtol=1e-6)
    made.step(np.ones((2, 7), dtype=np.float32), np.ones((2, 4), dtype=np.float32))


def test_dropout_acts_in_updates_only():
    plain, dropped = network("bce"), network("bce", dropout=0.5)
    x, target = np.ones((4, 5), dtype=np.float32), np.ones((4, 3), dtype=np.float32)
    assert np.array_equal(plain.forward(x), dropped.forward(x))
    plain.step(x, target)
    dropped.step(x, target)
    assert not np.array_equal(plain.weights[0], dropped.weights[0])

"""What routing keeps for the recomputation of gradient checkpointing: draws in step, no stale forward."""

import pytest
import torch

from tests.tuner.tiny import adapted, adapter_gradients, batch

NOISE = [{"name": "gaussian_noise", "std": 3.0}]


def checkpointed(model, use_reentrant):
    if use_reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_noise_leaves_dropout_in_step(use_reentrant):
    gradients = []
    for mode in (None, use_reentrant):
        model = checkpointed(adapted("top_k", dropout=0.5, modifiers=NOISE).double().train(), mode)
        torch.manual_seed(0)
        model(**batch()).loss.backward()
        gradients.append(adapter_gradients(model))
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    ("method", "options"),
    [("hash", {}), ("random_fixed", {}), ("thor", {}), ("top_k", {"modifiers": NOISE})],
)
def test_two_forwards_before_a_backward_are_recomputed_each_with_its_own(method, options, use_reentrant):
    gradients = []
    for mode in (None, use_reentrant):
        model = checkpointed(adapted(method, **options).double().train(), mode)
        torch.manual_seed(0)
        loss = model(**batch()).loss + model.base_model.aux_loss()
        loss = loss + model(**batch(length=9)).loss + model.base_model.aux_loss()
        loss.backward()
        gradients.append(adapter_gradients(model))
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-6, atol=1e-10)


def test_differentiating_one_forward_twice_under_checkpointing_is_refused():
    model = checkpointed(adapted("hash").train(), use_reentrant=False)
    loss = model(**batch()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward\\(\\) once after each forward"):
        loss.backward()
    model(**batch()).loss.backward()

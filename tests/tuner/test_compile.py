"""`torch.compile(fullgraph=True)` gives what eager mode gives: logits, gradients, auxiliary losses, state."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.tuner.tiny import adapted, adapter_gradients, batch

METHODS = ["top_k", "soft", "top_p", "dynmole", "condenser"]
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, backend="aot_eager"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.compile(model, backend=backend, fullgraph=True)


def same_in_training(method, explicit=False, targets=TARGETS):
    model = adapted(method, target_modules=targets).train()
    tuner = model.base_model
    tuner.add_aux_to_loss = not explicit
    results = []
    for run in (model, compiled(model)):
        model.zero_grad()
        loss = run(**batch()).loss
        if explicit:
            loss = loss + tuner.aux_loss()
        loss.backward()
        sums = {key: value.clone() for key, value in tuner.hooks.session.sums.items()}
        tuner.hooks.session.sums.clear()
        results.append((loss.detach(), adapter_gradients(model), sums))
    (loss, gradients, sums), (other, others, other_sums) = results
    torch.testing.assert_close(other, loss)
    assert gradients.keys() == others.keys() and sums.keys() == other_sums.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
    for key, value in sums.items():
        torch.testing.assert_close(other_sums[key], value)


def same_in_evaluation(method, targets=TARGETS):
    model = adapted(method, target_modules=targets).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(model, "eager")(**batch()).logits, model(**batch()).logits, rtol=1e-5, atol=1e-6
        )


def test_training_and_evaluation():
    same_in_training("top_k", targets=["q_proj"])
    same_in_evaluation("top_k", targets=["q_proj"])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[1:])
def test_more_methods(method):
    same_in_training(method)
    same_in_evaluation(method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["top_k", "dynmole"])
def test_the_loss_may_be_asked_for(method):
    same_in_training(method, explicit=True)


@pytest.mark.slow
def test_schedules_and_batches_do_not_compile_anew():
    model = adapted("condenser", target_modules=TARGETS).train()
    counter = CompileCounter()
    run = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(8):
        model.base_model.progress = step / 8
        run(**batch())
        model.base_model.after_step()
    assert counter.frame_count <= 4  # the first value, any value, before and after condensing


@pytest.mark.slow
def test_records_are_kept_when_asked_for():
    model = adapted("top_k", target_modules=TARGETS).eval()
    run = compiled(model, "eager")
    with torch.no_grad(), model.base_model.record():
        run(**batch())
    assert len(model.base_model.routing_stats()) == 4


def test_export_keeps_the_function():
    model = adapted("top_k", target_modules=["q_proj"]).eval()
    inputs = {"input_ids": batch()["input_ids"], "use_cache": False}
    program = torch.export.export(model, (), inputs, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**inputs).logits, model(**inputs).logits)

"""One expert is PEFT's LoRA, bit for bit."""

from contextlib import nullcontext

import peft
import pytest
import torch

from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.tiny import PROJECTIONS, batch, llama


def pair(dtype, alpha):
    plain = peft.get_peft_model(
        llama(dtype), peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=PROJECTIONS, lora_dropout=0.0)
    )
    routed = peft.get_peft_model(
        llama(dtype),
        RoutedLoraConfig(method="lora", r=4, alpha=alpha, target_modules=PROJECTIONS, dropout=0.0),
    )
    factors = dict(plain.named_parameters())
    for name, parameter in routed.named_parameters():
        if "moe_adapt_A" in name:
            theirs = factors[name.replace("moe_adapt_A.default", "lora_A.default.weight")]
            torch.nn.init.normal_(theirs, std=0.3)
            parameter.data.copy_(theirs.data.unsqueeze(0))
        elif "moe_adapt_B" in name:
            theirs = factors[name.replace("moe_adapt_B.default", "lora_B.default.weight")]
            torch.nn.init.normal_(theirs, std=0.3)
            parameter.data.copy_(theirs.data.unsqueeze(1))
    return plain.train(), routed.train()


@pytest.mark.parametrize("alpha", [8, 6, 5])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_output_and_gradients_are_bit_equal(dtype, autocast, alpha):
    results = []
    for model in pair(dtype, alpha):
        context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
        with context:
            output = model(**batch())
        output.loss.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        results.append((output.logits, grads))
    (logits, grads), (routed_logits, routed_grads) = results
    assert torch.equal(logits, routed_logits)
    assert len(grads) == len(routed_grads) == 2 * 2 * len(PROJECTIONS)
    for grad, routed_grad in zip(grads, routed_grads, strict=True):
        assert grad.abs().max() > 0
        assert torch.equal(grad, routed_grad)


def test_merging_one_expert_is_exact_and_reversible():
    plain, routed = (model.eval() for model in pair(torch.float32, 8))
    before = routed(**batch()).logits
    routed.merge_adapter(safe_merge=True)
    torch.testing.assert_close(routed(**batch()).logits, before, rtol=1e-4, atol=1e-5)
    routed.unmerge_adapter()
    torch.testing.assert_close(routed(**batch()).logits, before, rtol=1e-4, atol=1e-5)
    merged, theirs = routed.merge_and_unload(), plain.merge_and_unload()
    assert not any("moe_adapt" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(**batch()).logits, theirs(**batch()).logits, rtol=1e-4, atol=1e-5)


def test_initial_adapter_changes_nothing():
    base = llama().eval()
    expected = base(**batch()).logits
    for method in ("lora", "soft", "top_k", "top_p", "dynmole"):
        config = RoutedLoraConfig(method=method, r=2, target_modules=PROJECTIONS)
        model = peft.get_peft_model(llama(), config).eval()
        assert torch.equal(model(**batch()).logits, expected)

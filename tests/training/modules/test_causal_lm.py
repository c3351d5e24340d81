import lightning as L
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from moe_adapt.evaluation.likelihood import pick_choices, token_log_likelihood
from moe_adapt.training.modules import CausalLM
from moe_adapt.training.modules.causal_lm import left_padded
from tests.training.runs import loader, routed, trainer

IGNORED = -100


def tokens(rows: int = 3, length: int = 8, prompt: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.randint(6, 200, (rows, length), generator=torch.Generator().manual_seed(rows))
    labels = ids.clone()
    labels[:, :prompt] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def choices() -> dict[str, torch.Tensor]:
    batch = tokens(rows=5)
    batch["labels"][0, 6:] = IGNORED
    return batch | {"choice_row": torch.tensor([0, 0, 1, 1, 1]), "answer": torch.tensor([1, 2])}


def test_likelihood_equals_the_formula():
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[0, IGNORED, 3, 4], [1, 2, IGNORED, IGNORED]])
    likelihood, count = token_log_likelihood(logits, labels)
    logp = logits.log_softmax(dim=-1)
    expected = torch.stack([logp[0, 1, 3] + logp[0, 2, 4], logp[1, 0, 2]])
    assert torch.allclose(likelihood, expected, atol=1e-6)
    assert count.tolist() == [2, 1]


def test_the_loss_equals_that_of_transformers(llama):
    module, batch = CausalLM(llama).eval(), tokens()
    with torch.no_grad():
        assert torch.allclose(module.task_loss(batch), module.model(**batch).loss, atol=1e-6)


def test_training_moves_router_and_experts(llama, tmp_path):
    module = CausalLM(llama, tuner=routed("dynmole"), lr=1e-2)
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer(tmp_path).fit(module, loader([tokens()] * 3), loader([tokens()]))
    assert all(not torch.equal(before[n], p) for n, p in module.named_parameters() if n in before)
    assert all("moe_adapt_" in name for name in before)


def test_validation_loss_is_the_mean_over_tokens_of_all_batches(llama, tmp_path):
    module, batches = CausalLM(llama), [tokens(rows=2, prompt=7), tokens(rows=3, prompt=1)]
    [metrics] = trainer(tmp_path).validate(module, loader(batches), verbose=False)
    with torch.no_grad():
        parts = [token_log_likelihood(module.eval()(batch), batch["labels"]) for batch in batches]
    mean = -sum(part.sum() for part, _ in parts) / sum(count.sum() for _, count in parts)
    assert metrics["val/loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert metrics["val/perplexity"] == pytest.approx(mean.exp().item(), rel=1e-5)


def test_multiple_choice_accuracies(llama, tmp_path):
    module, batch = CausalLM(llama), choices()
    [metrics] = trainer(tmp_path).test(module, loader([batch]), verbose=False)
    with torch.no_grad():
        likelihood, count = token_log_likelihood(module.eval()(batch), batch["labels"])
    acc = [likelihood[:2].argmax() == 1, likelihood[2:].argmax() == 2]
    per_token = likelihood / count
    acc_norm = [per_token[:2].argmax() == 1, per_token[2:].argmax() == 2]
    assert metrics["test/acc"] == pytest.approx(sum(acc).item() / 2)
    assert metrics["test/acc_norm"] == pytest.approx(sum(acc_norm).item() / 2)
    right = [1, 4]
    expected = -likelihood[right].sum() / count[right].sum()
    assert metrics["test/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_length_normalisation_can_change_the_choice():
    scores, count = torch.tensor([-4.0, -3.0]), torch.tensor([4, 1])
    row = torch.tensor([0, 0])
    assert pick_choices(scores, row, 1).item() == 1
    assert pick_choices(scores / count, row, 1).item() == 0


def test_predict_scores_choices(llama, tmp_path):
    batch = choices()
    del batch["answer"]
    [output] = trainer(tmp_path).predict(CausalLM(llama), loader([batch]))
    assert output["scores"].shape == (5,)
    assert output["prediction"].shape == (2,)


def test_predict_continues_the_prompt_whatever_the_padding(llama, tmp_path):
    module = CausalLM(llama, tuner=routed(), max_new_tokens=5)
    ids = tokens(rows=1)["input_ids"][:, :5]
    padded = {
        "input_ids": torch.tensor([[*ids[0].tolist(), 0, 0], [*range(20, 27)]]),
        "attention_mask": torch.tensor([[1] * 5 + [0] * 2, [1] * 7]),
    }
    [texts] = trainer(tmp_path).predict(module, loader([padded]))
    alone = module.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert len(texts) == 2
    assert texts[0] == module.tokenizer.decode(alone[0, 5:], skip_special_tokens=True)


def test_left_padding_keeps_order():
    ids, mask = left_padded(
        torch.tensor([[5, 6, 7, 0], [1, 2, 3, 4]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]) > 0
    )
    assert ids[0, 1:].tolist() == [5, 6]
    assert ids[1].tolist() == [1, 2, 3]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_an_exported_adapter_goes_onto_base_model(llama, tmp_path):
    L.seed_everything(0, verbose=False)
    module = CausalLM(llama, tuner=routed(), lr=1e-2)
    trainer(tmp_path).fit(module, loader([tokens()] * 3))
    module.model.save_pretrained(tmp_path / "adapter")
    for base in (CausalLM.base_model(llama), AutoModelForCausalLM.from_pretrained(llama)):
        reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        with torch.no_grad():
            assert torch.equal(reloaded(**tokens()).logits, module.eval().model(**tokens()).logits)

"""The language model of the composition benchmark: halves agree with the whole; what models write."""

import random
from types import SimpleNamespace

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.markdown import REPOSITORY

WORDS = {"animals": ("cat", "dog", "cow"), "metals": ("iron", "gold", "zinc")}
CANDIDATES = ("amber", "birch")


@pytest.fixture
def programs(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks" / "compose"))
    import encoder
    import language
    import material
    import tasks
    import written

    return SimpleNamespace(
        encoder=encoder, language=language, material=material, tasks=tasks, written=written
    )


@pytest.fixture
def halves(programs, tmp_path):
    torch.manual_seed(0)
    words = ["</s>", "<unk>", "Answer", ":", *CANDIDATES, *WORDS["animals"], *WORDS["metals"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path / "model")
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=21,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return programs.language.LanguageHalves(tmp_path / "model")


def rows(programs, halves, task, count, seed):
    """Return texts of three words; each task has an answer of its own."""
    rng, answer = random.Random(seed), list(WORDS).index(task)
    texts = [" ".join(rng.choices(WORDS[task], k=3)) for _ in range(count)]
    found = [programs.tasks.Row(text, CANDIDATES, answer, task) for text in texts]
    return halves.cache([programs.language.prompted(halves.tokenizer, row) for row in found])


def test_the_upper_half_gives_what_the_whole_model_gives(programs, halves):
    data = rows(programs, halves, "animals", 3, 0)
    losses, scores, features = data.losses(halves.base), data.scores(halves.base), data.features()
    for number, row in enumerate(data.rows):
        prompt = torch.tensor([halves.tokenizer(row.text)["input_ids"]])
        answer = torch.tensor([halves.tokens_of(row.candidates[row.answer])])
        ids = torch.cat([prompt, answer], dim=1)
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = -100
        with torch.no_grad():
            whole = halves.whole()(ids, labels=labels, output_hidden_states=True)
        last = whole.logits[0, prompt.shape[1] - 1]
        first = [halves.tokens_of(candidate)[0] for candidate in CANDIDATES]
        torch.testing.assert_close(losses[number], whole.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores[number], last[first], rtol=1e-4, atol=1e-5)
        middle = whole.hidden_states[halves.middle][0, : prompt.shape[1]].mean(dim=0)
        torch.testing.assert_close(features[number], middle, rtol=1e-4, atol=1e-5)


def test_candidates_that_begin_alike_are_refused(halves):
    with pytest.raises(ValueError, match="begin with the same token"):
        halves.embed(["amber birch", "amber"])


def test_a_composed_adapter_writes_what_the_right_adapter_writes(programs, halves, tmp_path):
    data = {
        task: {
            "train": rows(programs, halves, task, 32, 0),
            "validation": rows(programs, halves, task, 4, 1),
            "test": rows(programs, halves, task, 6, 2),
        }
        for task in WORDS
    }
    sources, settings = {}, programs.encoder.Settings(lr=5e-2, epochs=8, batch=4)
    for task, parts in data.items():
        model = peft.get_peft_model(halves.fresh(), programs.encoder.lora_config(4))
        before = parts["test"].losses(model).mean().item()
        programs.encoder.train(model, parts["train"], settings, 0)
        assert parts["test"].losses(model).mean().item() < before / 2
        sources[task] = str(tmp_path / "adapters" / task)
        model.save_pretrained(sources[task])
    material = programs.material.Material(halves, data, sources, tmp_path)
    cell = {"weights": {"cat": 0.5}, "accuracy": {"merge cat": {"mean": 0.0}}}
    programs.written.generated(material, cell)
    written = cell["written"]
    assert written["LDA, 320 texts"] == written["oracle"]
    assert sum(map(sum, written["oracle"].values())) > sum(map(sum, written["base"].values()))
    assert written.keys() == {"base", "LDA, 320 texts", "oracle", "merge cat"}
    assert all(len(answers) == 6 for answers in written["oracle"].values())

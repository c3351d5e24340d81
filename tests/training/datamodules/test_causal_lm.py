import os
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules import CausalLMData
from moe_adapt.training.datamodules.causal_lm import pack, right_choice
from tests.training.tiny import tiny_llama, tiny_tokenizer

ROWS = [
    {
        "question": f"{i} or {i + 1}?",
        "choices": [f"no {i}", f"yes {i}", "both"],
        "answer": i % 3,
        "text": "doc " * i,
    }
    for i in range(1, 13)
]
QA = {"prompt": "Q: {question}\nA:", "response": " {answer}"}
CHOICE = {"prompt": "Q: {question}\nA:", "choices": "choices", "answer": "answer"}


def fitted(tokenizer, **options) -> CausalLMData:
    data = CausalLMData(tokenizer, **{"train": ROWS, "validation": ROWS[:4], "batch_size": 3, **options})
    data.setup("fit")
    return data


def spoken(data, batch) -> list[tuple[str, str]]:
    """Return the whole text and the learned text of every sequence."""
    rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    return [(data.tokenizer.decode(i[m.bool()]), data.tokenizer.decode(la[la >= 0])) for i, m, la in rows]


def test_prompt_and_response(tokenizer):
    data = fitted(tokenizer, **QA)
    batch = next(iter(data.val_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert spoken(data, batch)[0] == ("<s>Q: 1 or 2?\nA: 1</s>", " 1</s>")
    assert sum(len(b["labels"]) for b in data.train_dataloader()) == 12
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == -100).all()


def test_training_on_the_prompt_is_for_training_only(tokenizer):
    data = fitted(tokenizer, **QA, train_on_prompt=True)
    assert all(whole == learned for whole, learned in spoken(data, next(iter(data.train_dataloader()))))
    assert spoken(data, next(iter(data.val_dataloader())))[0][1] == " 1</s>"


def test_multiple_choice(tokenizer):
    data = fitted(tokenizer, **CHOICE, test=ROWS)
    batch = next(iter(data.val_dataloader()))
    assert batch["choice_row"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch["answer"].tolist() == [1, 2, 0]
    assert [learned for _, learned in spoken(data, batch)][:3] == [" no 1", " yes 1", " both"]
    train = [learned for b in data.train_dataloader() for _, learned in spoken(data, b)]
    assert sorted(train) == sorted(f" {row['choices'][row['answer']]}</s>" for row in ROWS)
    assert sum(len(b["answer"]) for b in data.test_dataloader()) == 12


def test_held_out_questions_keep_all_choices(tokenizer):
    data = fitted(tokenizer, **CHOICE, validation=None, validation_fraction=0.25)
    batches = list(data.val_dataloader())
    assert sum(len(b["answer"]) for b in batches) == 3 and sum(len(b["labels"]) for b in batches) == 9


def test_choices_by_templates_and_answer_by_text(tokenizer):
    rows = [{"question": "q", "a": "hot", "b": "cold", "right": "cold"}] * 4
    data = fitted(
        tokenizer, train=rows, validation=rows, prompt="{question}", choices=["{a}", "{b}"], answer="right"
    )
    batch = next(iter(data.val_dataloader()))
    assert batch["answer"].tolist() == [1, 1, 1]
    assert spoken(data, next(iter(data.train_dataloader())))[0] == ("<s>q cold</s>", " cold</s>")


def test_chat(chat_tokenizer):
    data = fitted(chat_tokenizer, chat=True, system="Be brief.", **QA)
    whole, learned = spoken(data, next(iter(data.val_dataloader())))[0]
    assert whole.endswith("<|user|>Q: 1 or 2?\nA:</s><|assistant|>1</s>") and learned == "1</s>"
    questions = fitted(chat_tokenizer, chat=True, **CHOICE)
    assert [t for _, t in spoken(questions, next(iter(questions.val_dataloader())))][:2] == ["no 1", "yes 1"]


def test_long_prompts_lose_their_beginning(tokenizer):
    rows = [{"question": "x" * 100 + "end", "answer": "yes"}] * 2
    data = fitted(tokenizer, train=rows, validation=rows, max_length=20, **QA)
    whole, learned = spoken(data, next(iter(data.val_dataloader())))[0]
    assert whole == "<s>xxxxxxxxend\nA: yes</s>" and learned == " yes</s>"


def test_plain_text_is_packed(tokenizer):
    data = fitted(tokenizer, text_column="text", max_length=16)
    batches = list(data.train_dataloader())
    assert all((b["labels"] == b["input_ids"])[b["attention_mask"].bool()].all() for b in batches)
    assert sum(int(b["attention_mask"].sum()) for b in batches) == sum(4 * i + 2 for i in range(1, 13))
    assert {b["input_ids"].shape[1] for b in batches[:-1]} == {16}


def test_pack_loses_nothing_but_a_lone_token():
    assert [b.input_ids for b in pack([[5, 6], [7]], 3, end=2)] == [[5, 6, 2], [7, 2]]
    assert [b.input_ids for b in pack([[5, 6], [7, 8, 9]], 3, end=2)] == [[5, 6, 2], [7, 8, 9]]


def test_answers_in_a_csv_file_are_numbers_unless_they_are_choices():
    assert right_choice("1", ["no", "yes"], 0) == 1
    assert right_choice("1", ["1", "0"], 0) == 0


@pytest.mark.parametrize("answer", [3, -1, "maybe", "2", "-1", None, 0.0])
def test_wrong_answers_name_the_row(answer):
    with pytest.raises(UserError, match=r"row 5 has the answer .*: expected an index from 0 to 1, or one of"):
        right_choice(answer, ["no", "yes"], 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either `prompt`"),
        ({"prompt": "{question}"}, "a `prompt` needs a `response`"),
        ({**QA, "text_column": "text"}, "give either `prompt`"),
        ({"prompt": "{question}", "choices": "choices"}, "`choices` and `answer` go together"),
        ({**QA, "prompt": "{qestion}"}, r"field {qestion}, which is no column. Did you mean 'question'"),
        ({**CHOICE, "choices": "chocies"}, "has no column 'chocies'. Did you mean 'choices'"),
        ({**CHOICE, "choices": "question"}, r"row 0 has '1 or 2\?' in column 'question': expected a list"),
        ({**CHOICE, "answer": "anser"}, "has no column 'anser'. Did you mean 'answer'"),
        ({**QA, "response": "{choice}"}, "field {choice}, which is no column"),
        (
            {**QA, "response": "{text}{text}", "max_length": 24},
            "row 2 has a response of 25 tokens, which leaves no",
        ),
        ({"text_column": "txt"}, "has no column 'txt'"),
    ],
)
def test_mistakes(tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        fitted(tokenizer, **options)


def test_batches_fit_a_model_of_limited_length(tmp_path):
    folder = str(tiny_llama(tmp_path))
    data = fitted(folder, **CHOICE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    batch = next(iter(data.train_dataloader()))
    assert 4 < model(**batch).loss.item() < 7


@pytest.mark.skipif("MOE_ADAPT_DATA" not in os.environ, reason="MOE_ADAPT_DATA names no folder of real data")
def test_real_tokenizer_and_text():
    """The pretrained 260k-parameter model finds children's stories likelier than their words backwards."""
    folder = str(Path(os.environ["MOE_ADAPT_DATA"], "stories260k_hf"))
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    model = AutoModelForCausalLM.from_pretrained(folder)

    def loss(text):
        rows = [{"text": text}]
        data = CausalLMData(folder, train=rows, text_column="text", validation_fraction=0.0, max_length=64)
        data.setup("fit")
        return model(**next(iter(data.train_dataloader()))).loss.item()

    rows = [{"prompt": "One day, Lily", "response": " went to the park."}]
    data = CausalLMData(
        folder, train=rows, prompt="{prompt}", response="{response}", validation_fraction=0.0, max_length=64
    )
    data.setup("fit")
    whole = data.tokenizer("One day, Lily went to the park.").input_ids
    assert next(iter(data.train_dataloader()))["input_ids"].tolist() == [
        [*whole, data.tokenizer.eos_token_id]
    ]
    assert loss(story) < 1.5 < loss(" ".join(reversed(story.split())))


def test_domains_of_examples_and_of_every_choice(tmp_path):
    rows = [
        {"q": "one", "options": ["a", "b"], "right": 0, "task": "x"},
        {"q": "two", "options": ["c", "d", "e"], "right": 2, "task": "y"},
    ]
    data = CausalLMData(
        str(tiny_tokenizer(tmp_path)),
        train=rows,
        test=rows,
        prompt="{q}",
        choices="options",
        answer="right",
        domain_column="task",
        validation_fraction=0.0,
    )
    data.setup("fit")
    data.setup("test")
    assert sorted(next(iter(data.train_dataloader()))["domain_ids"].tolist()) == [0, 1]
    assert next(iter(data.test_dataloader()))["domain_ids"].tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="drop domain_column"):
        CausalLMData(str(tmp_path), train=rows, text_column="q", domain_column="task")

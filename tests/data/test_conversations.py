"""Conversations, Alpaca's form, mixtures, over-long rows: what is learned and what is told."""

import json

import pytest
from transformers import AutoTokenizer

from moe_adapt.data.conversations import encode_conversation, turns_of
from moe_adapt.data.mixtures import parts_of
from moe_adapt.data.prompts import IGNORED
from moe_adapt.data.tables import load_table
from moe_adapt.errors import UserError
from moe_adapt.training.datamodules import CausalLMData, TextClassificationData

OPENAI = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "so long"},
]
SHAREGPT = [
    {
        "from": {"system": "system", "user": "human", "assistant": "gpt"}[turn["role"]],
        "value": turn["content"],
    }
    for turn in OPENAI
]
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def learned(tokenizer, example) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def test_only_the_assistant_is_learned_in_every_turn(chat_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer)
    example = encode_conversation(tokenizer, turns_of(OPENAI, 0), 0)
    assert learned(tokenizer, example) == "hello</s>so long</s>"
    whole = tokenizer.apply_chat_template(OPENAI, tokenize=False)
    assert tokenizer.decode(example.input_ids) == whole


def test_the_templates_own_mask_gives_the_same(chat_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer)
    plain = encode_conversation(tokenizer, turns_of(OPENAI, 0), 0)
    tokenizer.chat_template = MARKED
    assert encode_conversation(tokenizer, turns_of(OPENAI, 0), 0) == plain


def test_sharegpt_is_the_same_conversation():
    assert turns_of(SHAREGPT, 0) == turns_of(OPENAI, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hi", "holds no conversation"),
        ([{"role": "robot", "content": "x"}], "a turn of 'robot'"),
        ([{"role": "user", "content": "x"}], "no turn of the assistant"),
        ([{"role": "assistant", "content": None}], "without text"),
    ],
)
def test_what_is_no_conversation_is_told(value, message):
    with pytest.raises(UserError, match=message):
        turns_of(value, 3)


def test_a_tokenizer_without_chat_format_is_told(tokenizer):
    with pytest.raises(UserError, match="no chat template"):
        encode_conversation(AutoTokenizer.from_pretrained(tokenizer), turns_of(OPENAI, 0), 0)


def data(tokenizer, rows, **options) -> CausalLMData:
    settings = {"prompt": "{prompt}", "response": " {response}", "validation_fraction": 0.0} | options
    found = CausalLMData(tokenizer, train=rows, **settings)
    found.setup("fit")
    return found


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_column_of_conversations_is_found(column, chat_tokenizer):
    rows = [{"id": 1, column: OPENAI if column == "messages" else SHAREGPT}] * 3
    found = data(chat_tokenizer, rows)
    assert found.first_example().count("«") == 2
    assert found.notes == ["columns that nothing reads: id"]
    assert found.answering()["chat"] is True and found.answering()["prompt"] is None


def test_every_split_has_a_form_of_its_own(chat_tokenizer):
    plain = [{"prompt": "hello", "response": "ok"}] * 2
    chats = [{"messages": OPENAI}] * 3
    alone = data(chat_tokenizer, plain, validation=plain)
    mixed = data(chat_tokenizer, chats, validation=plain)
    assert mixed.splits["validation"].items == alone.splits["validation"].items
    assert mixed.answering()["prompt"] is None and alone.answering()["prompt"] == "{prompt}"
    held_out = data(chat_tokenizer, chats, validation_fraction=0.3)
    assert held_out.splits["validation"].items[0] == held_out.splits["train"].items[0]


@pytest.mark.parametrize(
    "templates",
    [
        {},
        {"prompt": "{instruction}", "response": "{output}"},
        {"prompt": "{instruction}\n\n{input}", "response": "{output}"},
    ],
    ids=["prompt", "instruction", "both"],
)
def test_alpacas_input_is_part_of_the_prompt(tokenizer, templates):
    rows = [{"instruction": "Translate.", "input": word, "output": word[::-1]} for word in ("ab", "cd", "")]
    found = data(tokenizer, rows, **templates)
    prompts = [
        found.tokenizer.decode(
            [t for t, label in zip(e.input_ids, e.labels, strict=True) if label == IGNORED]
        )
        for e in found.splits["train"].items
    ]
    assert len(set(prompts)) == 3
    assert prompts[0].count("Translate.\n\nab") == 1 and prompts[2].strip().endswith("Translate.")
    assert found.notes == []


def test_too_long_rows_stop_are_cut_or_dropped_and_counted(tokenizer):
    rows = [{"prompt": "p", "response": "x" * 100}, {"prompt": "p", "response": "ok"}]
    with pytest.raises(UserError, match="leaves no room"):
        data(tokenizer, rows, max_length=20)
    dropped = data(tokenizer, rows, max_length=20, too_long="drop")
    assert len(dropped.splits["train"]) == 1
    assert dropped.notes == ["1 of 2 rows too long: dropped"]
    cut = data(tokenizer, rows, max_length=20, too_long="truncate")
    assert [len(e.input_ids) <= 20 for e in cut.splits["train"].items] == [True, True]
    assert cut.notes == ["1 of 2 rows too long: cut"]
    with pytest.raises(UserError, match="every row exceeds"):
        data(tokenizer, rows[:1], max_length=20, too_long="drop")


def test_long_conversations_too(chat_tokenizer):
    rows = [{"messages": OPENAI}, {"messages": OPENAI[1:3]}]
    with pytest.raises(UserError, match="set too_long"):
        data(chat_tokenizer, rows, max_length=16)
    assert len(data(chat_tokenizer, rows, max_length=16, too_long="drop").splits["train"]) == 1


def test_several_files_with_weights(tmp_path, tokenizer):
    for name, count in (("a", 4), ("b", 3)):
        lines = [json.dumps({"text": f"{name}{i}", "label": name}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    a, b = (str(tmp_path / f"{name}.jsonl") for name in "ab")
    table = load_table([{"file": a, "weight": 2.5}, b])
    assert [sum(text.startswith(n) for text in table["text"]) for n in "ab"] == [10, 3]
    assert list(load_table([a, b])["text"]) == [f"a{i}" for i in range(4)] + [f"b{i}" for i in range(3)]
    mixed = TextClassificationData(tokenizer, train=[{"file": a, "weight": 2}, b])
    with pytest.raises(UserError, match="trained on and held out"):
        mixed.setup("fit")
    with pytest.raises(UserError, match="weight of a source"):
        parts_of([{"file": a, "weight": 0}])
    with pytest.raises(UserError, match="list of sources"):
        parts_of([a, 3])


def test_columns_that_nothing_reads_are_named(tokenizer):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "when": i} for i in range(6)]
    found = TextClassificationData(tokenizer, train=rows, validation_fraction=0.0)
    found.setup("fit")
    assert found.notes == ["columns that nothing reads: when"]
    assert found.first_example() == "t0\n«a»"

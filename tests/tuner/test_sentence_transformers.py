"""`SentenceTransformerTrainer` trains routers: both sides of a pair are forwards of one step."""

import peft
import pytest
from datasets import Dataset

from moe_adapt.tuner import RoutingCallback
from tests.tuner.clients import ARGUMENTS, base, check_step, config, tokenizer

pytestmark = pytest.mark.slow
sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs the extra clients: pip install 'moe-adapt[clients]'"
)
losses = pytest.importorskip("sentence_transformers.losses")
parts = pytest.importorskip("sentence_transformers.models")

PAIRS = {
    "anchor": ["sky is", "grass is", "snow is", "coal is"],
    "positive": [" blue", " green", " white", " black"],
}


@pytest.mark.parametrize("steps", [1, 2])
def test_pairs(tmp_path, steps):
    folder = tmp_path / "base"
    base().model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    words = parts.Transformer(str(folder))
    words.model = peft.get_peft_model(words.model, config(task_type="FEATURE_EXTRACTION"))
    pooling = parts.Pooling(32)
    model = sentence_transformers.SentenceTransformer(modules=[words, pooling], device="cpu")
    settings = ARGUMENTS | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": steps}
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "out"), **settings
        ),
        train_dataset=Dataset.from_dict(PAIRS),
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[RoutingCallback()],
    )
    assert len(check_step(trainer)) == 2 * steps

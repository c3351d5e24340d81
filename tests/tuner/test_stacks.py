"""Each stack of a model has its own mask and ids: encoder and decoder, text and image."""

import peft
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.tiny import randomize


def routed(base, **options):
    settings = {"method": "top_k", "r": 2, "num_experts": 4, "dropout": 0.0} | options
    model = peft.get_peft_model(base, RoutedLoraConfig(**settings))
    randomize(model)
    return model.train()


def t5(**options):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    targets = r".*\.(SelfAttention\.q|EncDecAttention\.[qkv]|wi)"
    return routed(T5ForConditionalGeneration(config), target_modules=targets, **options)


def t5_batch(source=6, target=5):
    ids = torch.randint(1, 32, (2, source), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, source, dtype=torch.long)
    mask[0, 4:] = 0
    labels = torch.randint(1, 32, (2, target), generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def tokens(model):
    return {site: stats.tokens for site, stats in model.base_model.routing_stats().items()}


@pytest.mark.parametrize("target", [5, 6])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_encoder_and_decoder(target, checkpointing):
    model = t5()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    out = model(**t5_batch(target=target))
    (out.loss + model.base_model.aux_loss()).backward()
    for site, count in tokens(model).items():
        memory = "EncDecAttention" in site and site[-1] in "kv"
        of_encoder = site.startswith("encoder") or memory
        assert count == (10 if of_encoder else 2 * target), site


def test_a_decoder_mask_of_its_own():
    model = t5()
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    model(**t5_batch(), decoder_attention_mask=mask)
    assert tokens(model)["decoder.block.0.layer.0.SelfAttention.q"] == 8


def test_hash_routing_goes_by_the_stacks_own_ids():
    model = t5(scorer="hash")
    rows = t5_batch(target=6)
    model(**rows)
    decoder = model.prepare_decoder_input_ids_from_labels(rows["labels"])
    records = {r.site: r for r in model.base_model.hooks.session.context.records.values()}
    for site, ids in (
        ("encoder.block.0.layer.0.SelfAttention.q", rows["input_ids"]),
        ("decoder.block.0.layer.0.SelfAttention.q", decoder),
        ("decoder.block.0.layer.1.EncDecAttention.k", rows["input_ids"]),
    ):
        assert torch.equal(records[site].logits.argmax(-1), ids.flatten() % 4), site


def test_generation_routes_by_the_ids_of_its_own_steps():
    model = t5(scorer="hash").eval()
    rows = t5_batch()
    rows.pop("labels")
    whole = model.generate(**rows, max_new_tokens=4, do_sample=False)
    other = {**t5_batch(source=3), "input_ids": torch.ones(2, 3, dtype=torch.long)}
    other["attention_mask"] = torch.ones(2, 3, dtype=torch.long)
    with torch.no_grad():
        model(**other)  # leaves ids and a mask behind
    assert torch.equal(model.generate(**rows, max_new_tokens=4, do_sample=False), whole)


def clip():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 32, "max_position_embeddings": 40},
        vision_config={**small, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    )
    return CLIPModel(config)


@pytest.mark.parametrize("length", [17, 40])
def test_text_and_image(length):
    model = routed(clip(), target_modules=["fc1", "q_proj", "visual_projection"])
    ids = torch.ones(2, length, dtype=torch.long)
    mask = torch.zeros(2, length, dtype=torch.long)
    mask[:, :5] = 1
    out = model(input_ids=ids, attention_mask=mask, pixel_values=torch.randn(2, 3, 16, 16))
    (out.logits_per_image.sum() + model.base_model.aux_loss()).backward()
    for site, count in tokens(model).items():
        expected = 10 if site.startswith("text") else 34 if site.startswith("vision") else 2
        assert count == expected, site


def test_a_tower_inside_a_text_model():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **small, "image_size": 8, "patch_size": 4},
        text_config={"model_type": "llama", **small, "vocab_size": 40, "num_key_value_heads": 2},
        image_token_index=39,
        vision_feature_layer=-1,
    )
    model = routed(LlavaForConditionalGeneration(config), target_modules=["q_proj", "linear_1"])
    ids = torch.tensor([[39, 39, 39, 39, 1, 2], [39, 39, 39, 39, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    out = model(input_ids=ids, attention_mask=mask, pixel_values=torch.randn(2, 3, 8, 8))
    (out.logits.sum() + model.base_model.aux_loss()).backward()
    for site, count in tokens(model).items():
        kinds = {"vision_tower": 10, "projector": 8, "language_model": 10}
        assert count == next(value for kind, value in kinds.items() if kind in site), site


def test_a_mask_that_does_not_fit_is_not_cut_in_training():
    model = t5()
    rows = t5_batch()
    long = torch.zeros(2, 9, dtype=torch.long)
    stack = model.base_model.model.encoder
    stack(inputs_embeds=torch.randn(2, 6, 16), attention_mask=None)
    assert tokens(model)["encoder.block.0.layer.0.SelfAttention.q"] == 12
    with pytest.raises(UserError, match="all tokens of this batch are padding"):
        model(**{**rows, "attention_mask": long[:, :6]})
        model.base_model.aux_loss()

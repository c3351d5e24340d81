"""Tiny encoders with transformer blocks of every kind, and a stream of images or texts for them."""

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    DistilBertConfig,
    DistilBertModel,
    ViTConfig,
    ViTModel,
)

from moe_adapt.backbones import Encoder, ImageEncoder
from moe_adapt.streams import TaskStream

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 16, "patch_size": 8}


class Centred(Encoder):
    """An encoder minus what it gives for noise: random weights map everything to nearly one direction."""

    def __init__(self, encoder, batch):
        super().__init__(encoder.model, encoder.name, encoder.width)
        self.inner = [encoder.eval()]
        with torch.no_grad():
            self.centre = encoder(batch).mean(0)

    def forward(self, batch):
        return self.inner[0](batch) - self.centre


class Tokens(Encoder):
    """A Hugging Face model that gives the mean of its real tokens."""

    def __init__(self, model):
        super().__init__(model, type(model).__name__, 16)

    def forward(self, batch):
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "pixel_values")}
        hidden = self.model(**inputs).last_hidden_state
        mask = batch.get("attention_mask", torch.ones(hidden.shape[:2])).unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)


def timm_vit():
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    return ImageEncoder("vit_tiny_patch16_224", pretrained=False, model_kwargs=shape)


def bert():
    torch.manual_seed(0)
    return Tokens(BertModel(BertConfig(vocab_size=80, **SHAPE), add_pooling_layer=False))


def distilbert():
    torch.manual_seed(0)
    return Tokens(
        DistilBertModel(DistilBertConfig(vocab_size=80, dim=16, n_layers=2, n_heads=2, hidden_dim=32))
    )


def dinov2():
    torch.manual_seed(0)
    shape = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    return Tokens(Dinov2Model(Dinov2Config(**shape, **IMAGE)))


def vit():
    torch.manual_seed(0)
    return Tokens(ViTModel(ViTConfig(**SHAPE, **IMAGE), add_pooling_layer=False))


ENCODERS = {"timm": timm_vit, "bert": bert, "distilbert": distilbert, "dinov2": dinov2, "vit": vit}


class Rows(torch.utils.data.Dataset):
    """Rows of tensors."""

    def __init__(self, **columns):
        self.columns = columns

    def __getitem__(self, row):
        return {name: column[row] for name, column in self.columns.items()}


def make_stream(text=False, sizes=(2, 2, 2), train=12, test=8, seed=0):
    """Classes that differ in their mean image, or in which words they use."""
    generator = torch.Generator().manual_seed(seed)
    classes = sum(sizes)
    centres = torch.randn(classes, 3, 16, 16, generator=generator)

    def split(count):
        labels = torch.arange(classes).repeat_interleave(count)
        if not text:
            noise = torch.randn(len(labels), 3, 16, 16, generator=generator)
            return Rows(pixel_values=centres[labels] + 0.5 * noise), labels.numpy()
        ids = 5 + 3 * labels.unsqueeze(1) + torch.randint(0, 3, (len(labels), 6), generator=generator)
        length = torch.randint(3, 7, (len(labels), 1), generator=generator)
        mask = (torch.arange(6) < length).long()
        return Rows(input_ids=ids * mask, attention_mask=mask), labels.numpy()

    (train_x, train_y), (test_x, test_y) = split(train), split(test)
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    rows = [[np.flatnonzero(task_of[y] == t) for t in range(len(sizes))] for y in (train_y, test_y)]
    names = [f"class {c}" for c in range(classes)]
    return TaskStream("class", train_x, test_x, *rows, train_y, test_y, names, origin={"tiny": seed})

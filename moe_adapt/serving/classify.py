"""Classify texts and images with an opened model; rows of one batch may use different adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_adapt.data.tokenizer import load_tokenizer
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.serving.known import domain_column, known_ids

__all__ = ["Answer", "Classifying"]


@dataclass(frozen=True)
class Answer:
    """What a classifier says about one row.

    Attributes:
        prediction: Name of the most probable class.
        probability: Its probability.
        top: The most probable classes with their probabilities, best first.
    """

    prediction: str
    probability: float
    top: list[tuple[str, float]]

    def row(self, top: bool) -> dict[str, Any]:
        """Return it as JSON types, probabilities with four digits.

        Args:
            top: Whether to list the most probable classes.
        """
        found: dict[str, Any] = {"prediction": self.prediction, "probability": round(self.probability, 4)}
        if top:
            found["top"] = [{"class": name, "probability": round(value, 4)} for name, value in self.top]
        return found


class Classifying:
    """A classifier in use.

    Args:
        model: The model with its adapter, in evaluation mode.
        answering: How rows are put to it (`moe_adapt.hub.answering`).
        tokenizer: Folder or name of its tokenizer; None for images.
        name: Name of the adapter.

    Attributes:
        adapters: ``answering`` of every adapter that can be asked for, by name.
    """

    def __init__(self, model: Any, answering: Mapping[str, Any], tokenizer: str | None, name: str) -> None:
        self.model = model
        self.adapters: dict[str, dict[str, Any]] = {name: dict(answering)}
        self.first = name
        self.images = answering["task"] == "image-classification"
        self.prepare: Any = None
        if self.images:
            from moe_adapt.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_transforms

            self.prepare = image_transforms(
                answering.get("image_size", 224),
                answering.get("crop_fraction", 1.0),
                tuple(answering.get("mean", IMAGENET_MEAN)),
                tuple(answering.get("std", IMAGENET_STD)),
                1.0,
            )[0]
        else:
            self.tokenizer = load_tokenizer(str(tokenizer), answering["max_length"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the first adapter."""
        return list(map(str, self.adapters[self.first]["class_names"]))

    @property
    def columns(self) -> list[str]:
        """Columns of a row that the model reads."""
        own = self.adapters[self.first]
        return [own.get("image_column", "image")] if self.images else list(own["text_columns"])

    @property
    def label_column(self) -> str:
        """Column of the label in rows that have one."""
        return str(self.adapters[self.first].get("label_column", "label"))

    @property
    def domain_column(self) -> str | None:
        """Column that says whose a row is, of the first adapter."""
        return domain_column(self.adapters[self.first])

    def add(self, name: str, folder: Path, answering: Mapping[str, Any]) -> None:
        """Load another adapter over the same base.

        Args:
            name: What it is asked for by.
            folder: Its folder.
            answering: Its ``answering.json``.
        """
        self.model.load_adapter(str(folder), adapter_name=name)
        self.model.eval()
        self.adapters[name] = dict(answering)

    def inputs_of(self, row: Mapping[str, Any], number: int) -> tuple[str, ...]:
        """Return what the model reads of a row.

        Raises:
            UserError: If a column is missing or holds no text.
        """
        for column in self.columns:
            if not isinstance(row.get(column), str):
                near = did_you_mean(column, row)
                raise UserError(
                    f"row {number} has no text in column {column!r}, which the model reads.{near} "
                    f"Its columns: "
                    f"{', '.join(row)}."
                )
        return tuple(row[column] for column in self.columns)

    def __call__(
        self,
        inputs: Sequence[str | tuple[str, ...]],
        top: int = 1,
        adapters: Sequence[str] | None = None,
        domains: Sequence[Any] | None = None,
    ) -> list[Answer]:
        """Classify a batch.

        Args:
            inputs: Texts, or pairs of texts; paths of images.
            top: How many of the most probable classes to name.
            adapters: Name of the adapter of each row; None takes the first for all.
            domains: Whose each row is, a value of the domain column; None for unknown.

        Raises:
            UserError: If an image cannot be read, or there is no such adapter.
        """
        if not inputs:
            return []
        rows = [item if isinstance(item, tuple) else (item,) for item in inputs]
        names = list(adapters) if adapters is not None else [self.first] * len(rows)
        unknown = next((name for name in names if name not in self.adapters), None)
        if unknown is not None:
            raise UserError(f"there is no adapter {unknown!r}.{did_you_mean(unknown, self.adapters)}")
        extra: dict[str, Any] = {} if len(self.adapters) == 1 else {"adapter_names": names}
        device = next(self.model.parameters()).device
        extra |= known_ids(self.model, self.adapters, domains, device)
        with torch.inference_mode():
            probabilities = self.logits(rows, extra).float().softmax(dim=-1).cpu()
        found = []
        for name, row in zip(names, probabilities, strict=True):
            classes = self.adapters[name]["class_names"]
            values, order = row.topk(min(max(1, top), len(classes)))
            pairs = [
                (str(classes[i]), float(v)) for i, v in zip(order.tolist(), values.tolist(), strict=True)
            ]
            found.append(Answer(pairs[0][0], pairs[0][1], pairs))
        return found

    def logits(self, rows: Sequence[tuple[str, ...]], extra: Mapping[str, Any]) -> Tensor:
        """Return the logits of prepared rows, [B, C], from one forward with further arguments."""
        device = next(self.model.parameters()).device
        if self.images:
            from moe_adapt.data.image_sources import decode

            pixels = torch.stack([self.prepare(decode(Path(row[0]), row[0])) for row in rows]).to(device)
            library = self.adapters[self.first].get("base", {}).get("library", "timm")
            output = (
                self.model(pixels, **extra) if library == "timm" else self.model(pixel_values=pixels, **extra)
            )
        else:
            columns = [list(column) for column in zip(*rows, strict=True)]
            length = self.adapters[self.first]["max_length"]
            encoded = self.tokenizer(
                *columns, truncation=True, max_length=length, padding=True, return_tensors="pt"
            )
            inputs = {key: encoded[key].to(device) for key in ("input_ids", "attention_mask")}
            output = self.model(**inputs, **extra)
        return output if isinstance(output, Tensor) else output.logits

"""Write what ``moe-adapt predict`` predicts: ``predictions.jsonl``, one JSON object per row, in order.

A classifier's row has ``prediction`` (class number), ``class`` (its name, if known) and ``probabilities``; a
multiple-choice row has ``prediction`` and the ``scores`` of its choices; generated text is ``text``.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["PredictionWriter", "rows"]


def rows(prediction: Any, class_names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Split what a module's ``predict_step`` returned for a batch into rows, as JSON types.

    Args:
        prediction: A list of texts; or a mapping to tensors with one entry per row ([B, ...]);
            ``scores`` has one per choice [M] if there is a ``choice_row`` [M].
        class_names: Names of the classes.
    """
    if isinstance(prediction, list):
        yield from ({"text": text} for text in prediction)
        return
    fields: dict[str, Tensor] = dict(prediction)
    choice_row = fields.pop("choice_row", None)
    scores = fields.pop("scores", None)
    for number in range(len(fields["prediction"])):
        row: dict[str, Any] = {name: values[number].tolist() for name, values in fields.items()}
        if choice_row is not None and scores is not None:
            row["scores"] = scores[choice_row == number].tolist()
        elif class_names is not None:
            row["class"] = class_names[int(fields["prediction"][number])]
        yield row


class PredictionWriter(L.Callback):
    """Write the rows as they come.

    Args:
        path: The file; its folder need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start an empty file.

        Raises:
            UserError: If several processes predict: each has a share of the rows only.
        """
        if trainer.world_size > 1:
            raise UserError("predict writes one file in the rows' order: run it with --trainer.devices 1.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append a batch's rows."""
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows(outputs, names):
                file.write(json.dumps(row) + "\n")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the file is."""
        print(f"predictions: {self.path}", flush=True)

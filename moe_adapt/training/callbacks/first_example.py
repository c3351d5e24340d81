"""Show the first training example as the model gets it: most mistakes in data can be seen there."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["FirstExample"]

#: The most characters of it that are shown.
SHOWN = 1200


class FirstExample(L.Callback):
    """Print the first training example when training starts, with what is learned in marks.

    Args:
        show: Whether to print it.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it, and what the data module has to say about its rows."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for note in getattr(data, "notes", ()):
            rank_zero_info(f"note: {note}")
        rendered = getattr(data, "first_example", None)
        if not self.show or rendered is None or trainer.ckpt_path is not None:
            return
        text = rendered()
        if text:
            cut = text if len(text) <= SHOWN else f"{text[:SHOWN]} ... ({len(text):,} characters)"
            rank_zero_info(f"first training example:\n{cut}")

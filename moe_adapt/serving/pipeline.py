"""Three lines of Python for people who only want to use a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.serving.classify import Classifying
from moe_adapt.serving.generate import Request, Sampling
from moe_adapt.serving.opening import open_model

__all__ = ["Pipeline", "pipeline"]


class Pipeline:
    """A model to be called: with one input, or a list.

    Args:
        model: What `open_model` returned.
        batch_size: Rows per forward.
    """

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        self.model = model
        self.batch_size = batch_size

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer.

        A classifier takes texts, pairs of texts (tuples) or paths of images and returns a dict with
        ``prediction`` and ``probability`` (and ``top``, if asked for ``top=3``, say). A language model takes
        prompts in the words of the training template, or conversations (lists of ``role`` and ``content``),
        and returns the answers; options are those of `Sampling`.

        Args:
            inputs: One input, or a list of inputs.
            options: ``top`` for classifiers, the fields of `Sampling` for language models.
        """
        one = not isinstance(inputs, list) or (bool(inputs) and isinstance(inputs[0], dict))
        rows = [inputs] if one else inputs
        answer = self._classify if isinstance(self.model, Classifying) else self._generate
        found = [
            result
            for start in range(0, len(rows), self.batch_size)
            for result in answer(rows[start : start + self.batch_size], **options)
        ]
        return found[0] if one else found

    def _classify(self, rows: Sequence[Any], top: int = 1) -> list[dict[str, Any]]:
        return [answer.row(top > 1) for answer in self.model(rows, top)]

    def _generate(self, rows: Sequence[Any], **options: Any) -> list[str]:
        requests = []
        for row in rows:
            messages = row if isinstance(row, list) else [{"role": "user", "content": row}]
            tokens = self.model.chat_tokens(messages)
            requests.append(Request(tokens, self.model.first, Sampling(**options)))
        self.model.generate(requests)
        return [request.text for request in requests]


def pipeline(source: str | Path, base: str | None = None, batch_size: int = 32) -> Pipeline:
    """Open a run or an adapter for use.

    Args:
        source: Folder of a run, folder of an exported adapter, or ``user/name`` on the Hub.
        base: Folder or name of the base model, where the adapter does not say where it is.
        batch_size: Rows per forward.

    Raises:
        UserError: If it cannot be opened.
    """
    return Pipeline(open_model(source, base), batch_size)

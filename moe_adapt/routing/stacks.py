"""Which tokens of a model's input a layer sees: each stack has its own mask and its own token ids.

An encoder-decoder has two sequences, a CLIP two towers, a vision-language model a tower inside a text model.
The mask of one says nothing about the tokens of another, even where the shapes agree. A `Stack` is what one
module that takes inputs (`is_stack`) was called with; stacks nest, and a layer belongs to the innermost one
around it, except for the keys and values of a cross-attention, which are tokens of the encoder.

Where the mask of a stack is not known, or does not fit, all of its tokens count.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

__all__ = ["INPUTS", "Stack", "is_stack"]

#: Names of the arguments that are a sequence of their own.
INPUTS = {"input_ids", "decoder_input_ids", "pixel_values", "input_features", "input_values"}


def is_stack(module: nn.Module) -> bool:
    """Return whether a module is called with a sequence of tokens, images or sounds by name."""
    return not {*INPUTS, "inputs_embeds"}.isdisjoint(inspect.signature(module.forward).parameters)


class Stack:
    """The inputs of one stack.

    Args:
        mask: True for real tokens, [B, S] ([B, past + S] with a key-value cache), or None.
        ids: Token ids, [B, S], or None.
        cached: Whether a key-value cache holds the first columns of the mask.
        memory: The encoder's output that a decoder attends to, [B, S', d], or None.
        memory_stack: The stack of those tokens.
        samples: Number of sequences, `B`, where neither mask nor ids tell it.

    Attributes:
        number: Tells the stacks of one forward apart; tokens of one number have one mask.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        cached: bool = False,
        memory: Tensor | None = None,
        memory_stack: Optional["Stack"] = None,
        samples: int | None = None,
    ) -> None:
        self.samples = next((len(part) for part in (mask, ids) if isinstance(part, Tensor)), samples)
        self.mask = mask if mask is None else mask.bool()
        self.ids = ids
        self.cached = cached
        self.memory, self.memory_stack = memory, memory_stack
        self.number = 0
        self._masks: dict[tuple[int, ...], Tensor | None] = {}

    @classmethod
    def of_call(
        cls,
        inputs: Mapping[str, Any],
        outer: Optional["Stack"] = None,
        encoded: tuple[Tensor | None, Optional["Stack"]] = (None, None),
    ) -> "Stack":
        """Return the stack of a call with named inputs, inside another stack or at the top.

        Args:
            inputs: The arguments by name.
            outer: The stack around it, whose mask and ids hold for embedded tokens of the same shape.
            encoded: The last output of a stack, and that stack.
        """
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        mask = inputs.get("token_mask") if mask is None else mask  # packed rows have no other mask
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        embedded = inputs.get("inputs_embeds")
        if outer is not None and isinstance(embedded, Tensor) and embedded.ndim == 3:
            shape = embedded.shape[:2]
            if mask is None and outer.mask is not None and outer.mask.shape == shape:
                mask = outer.mask
            if ids is None and isinstance(outer.ids, Tensor) and outer.ids.shape == shape:
                ids = outer.ids
        memory, memory_stack = inputs.get("encoder_hidden_states"), None
        if isinstance(memory, Tensor) and memory is encoded[0]:
            memory_stack = encoded[1]
        elif isinstance(memory, Tensor):
            seen = inputs.get("encoder_attention_mask")
            seen = seen if isinstance(seen, Tensor) and seen.ndim == 2 else None
            known = None if outer is None or not isinstance(outer.ids, Tensor) else outer.ids
            fits = known is not None and known.shape == memory.shape[:2]
            memory_stack = cls(seen, known if fits else None)
        given = (inputs.get(name) for name in ("inputs_embeds", *sorted(INPUTS)))
        samples = next((len(part) for part in given if isinstance(part, Tensor) and part.ndim > 1), None)
        cached = inputs.get("past_key_values") is not None
        return cls(mask, ids, cached, memory, memory_stack, samples)

    def holding(self, x: Tensor) -> "Stack":
        """Return the stack whose tokens are `x`: the encoder's for the input of a cross-attention."""
        memory = self.memory
        if memory is None or self.memory_stack is None:
            return self
        same = x is memory
        if not same and x.shape == memory.shape and not torch.compiler.is_compiling():
            same = x.data_ptr() == memory.data_ptr()
        return self.memory_stack if same else self

    def flat_mask(self, shape: Sequence[int]) -> Tensor | None:
        """Return the mask [N] for an input [*shape, d], or None if all of its tokens count."""
        if self.mask is None:
            return None
        if torch.compiler.is_compiling():
            return self._fit(self.mask, tuple(shape))
        key = tuple(shape)
        if key not in self._masks:
            self._masks[key] = self._fit(self.mask, key)
        return self._masks[key]

    def flat_ids(self, shape: Sequence[int]) -> Tensor | None:
        """Return the token ids [N] for an input [*shape, d], or None if they do not fit."""
        return self._fit(self.ids, tuple(shape)) if isinstance(self.ids, Tensor) else None

    def _fit(self, table: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Return the entries [N] of a table [B, S] for an input [*shape, d], or None if it does not fit.

        Only with a key-value cache are first columns those of earlier tokens, and left out.
        """
        if table.ndim != 2:
            return None
        rows, columns = table.shape
        if len(shape) == 1:
            return table.reshape(-1) if shape[0] == rows * columns else None
        if len(shape) != 2 or shape[0] != rows:
            return None
        if shape[1] == columns:
            return table.reshape(-1)
        return table[:, columns - shape[1] :].reshape(-1) if self.cached and shape[1] < columns else None

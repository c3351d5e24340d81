"""Where a block's mixture reads and writes: the residual stream beside the MLP of a transformer block.

A pre-norm block (ViT, DINOv2) is read at the input of its second norm; the mixture is added to the block's
output, after layer scale and stochastic depth. A post-norm block (BERT) is read at the input of its MLP; the
mixture is added to the input of its last norm. Hooks do both, so the model's own code is untouched and
`SiteHooks.remove` restores it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError

__all__ = ["LAYOUTS", "Layout", "RoutingRow", "SiteHooks", "find_blocks", "routing_row"]

#: Which vector of a sample decides: its ``first`` token (CLS), or the ``mean`` of its real tokens (ours).
RoutingRow = Literal["first", "mean"]


class Layout(NamedTuple):
    """Where a kind of block is read and written.

    Attributes:
        read: Path of the submodule whose input is read.
        write: Path of the submodule that is written; empty for the block itself.
        at: Whether its ``input`` or its ``output`` is written.
    """

    read: str
    write: str
    at: Literal["input", "output"]


_POST_NORM = Layout("intermediate", "output.LayerNorm", "input")

#: Supported blocks by class name: timm's vision transformers, Hugging Face vision and text encoders.
LAYOUTS = {
    "Block": Layout("norm2", "", "output"),
    "Dinov2Layer": Layout("norm2", "", "output"),
    "Dinov2WithRegistersLayer": Layout("norm2", "", "output"),
    "ViTLayer": Layout("layernorm_after", "", "output"),
    "DeiTLayer": Layout("layernorm_after", "", "output"),
    "BertLayer": _POST_NORM,
    "RobertaLayer": _POST_NORM,
    "XLMRobertaLayer": _POST_NORM,
    "ElectraLayer": _POST_NORM,
    "MPNetLayer": _POST_NORM,
    "TransformerBlock": Layout("ffn", "output_layer_norm", "input"),
}


def find_blocks(model: nn.Module) -> list[tuple[nn.Module, Layout]]:
    """Return the transformer blocks of a model in their order, and how each is read and written.

    Raises:
        UserError: If there is none of a supported kind.
    """
    found = [(module, LAYOUTS.get(type(module).__name__)) for module in model.modules()]
    blocks = [(module, layout) for module, layout in found if layout is not None and _fits(module, layout)]
    if not blocks:
        raise UserError(
            f"{type(model).__name__} has no transformer block that CaRE knows; it adapts "
            f"{', '.join(LAYOUTS)} "
            "(timm vision transformers, Hugging Face ViT, DINOv2, BERT and their like)."
        )
    return blocks


def _fits(module: nn.Module, layout: Layout) -> bool:
    names = dict(module.named_modules())
    return layout.read in names and layout.write in names


def routing_row(tokens: Tensor, kind: RoutingRow, mask: Tensor | None) -> Tensor:
    """Return the vector of each sample that decides, [B, d].

    Args:
        tokens: The residual stream, [B, S, d].
        kind: Which vector.
        mask: Which tokens are real, [B, S]; None for all.
    """
    if kind == "first":
        return tokens[:, 0]
    if mask is None:
        return tokens.mean(dim=1)
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class SiteHooks:
    """The hooks that put mixtures beside the MLPs of a model.

    Args:
        model: The model.
        mixture: A function from a block's number and the residual stream [B, S, d] to
            what is added to it.

    Raises:
        UserError: If the model has no supported block.
    """

    def __init__(self, model: nn.Module, mixture: Callable[[int, Tensor], Tensor]) -> None:
        self.mixture = mixture
        self.streams: dict[int, Tensor] = {}
        self.handles: list[Any] = []
        for index, (block, layout) in enumerate(find_blocks(model)):
            read, write = block.get_submodule(layout.read), block.get_submodule(layout.write)
            self.handles.append(read.register_forward_pre_hook(partial(self._read, index)))
            if layout.at == "input":
                self.handles.append(write.register_forward_pre_hook(partial(self._write_input, index)))
            else:
                self.handles.append(write.register_forward_hook(partial(self._write_output, index)))

    # Partial methods rather than closures: they follow a deep copy of the learner.

    def _read(self, index: int, _: nn.Module, args: Any) -> None:
        if args[0].ndim != 3:
            raise UserError(
                f"CaRE reads tokens of shape [B, S, d], but block {index} works on {list(args[0].shape)}."
            )
        self.streams[index] = args[0]

    def _write_input(self, index: int, _: nn.Module, args: Any) -> Any:
        return self._added(index, args[0]), *args[1:]

    def _write_output(self, index: int, _: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return self._added(index, output[0]), *output[1:]
        return self._added(index, output)

    def _added(self, index: int, value: Tensor) -> Tensor:
        with torch.autocast(value.device.type, enabled=False):
            extra = self.mixture(index, self.streams.pop(index))
        return value + extra.to(value.dtype)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

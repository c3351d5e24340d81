"""State that grows with the classes: tensors of a module made as large as those that are about to be loaded.

``load_state_dict`` refuses tensors of another shape. Heads, prototypes, covariances and replay buffers grow
while a learner learns, so a fresh learner has to grow before its state is put back.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError

__all__ = ["TensorStore", "check_parameters", "grow_rows", "resize_to"]


class TensorStore(nn.Module):
    """Named tensors as buffers whose names are not known before: importances, anchors, stored samples.

    >>> store = TensorStore()
    >>> store["head.weight"] = torch.ones(2)
    >>> list(store), list(store.state_dict())
    (['head.weight'], ['head__weight'])
    """

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.register_buffer(name.replace(".", "__"), value)

    def __getitem__(self, name: str) -> Tensor:
        value = self._buffers[name.replace(".", "__")]
        assert value is not None
        return value

    def __contains__(self, name: str) -> bool:
        return name.replace(".", "__") in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter([name.replace("__", ".") for name in self._buffers])

    def __len__(self) -> int:
        return len(self._buffers)


def resize_to(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer of `module` the shape that it has in `state`, without values.

    A buffer registered as None is created, and so is every tensor of a `TensorStore`. Other names that the
    module lacks are left to `load_state_dict`, which reports them.

    Raises:
        UserError: If a tensor has another number of axes, or more than one of them has another length.

    >>> head = nn.Linear(3, 2)
    >>> resize_to(head, {"weight": torch.zeros(5, 3)})
    >>> head.weight.shape
    torch.Size([5, 3])
    """
    owners = dict(module.named_modules())
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        owner = owners.get(path)
        if owner is None:
            continue
        known = owner._buffers.get(leaf, owner._parameters.get(leaf))
        if known is not None:
            _check_growth(name, tuple(known.shape), tuple(value.shape))
        if isinstance(owner, TensorStore) and leaf not in owner._buffers:
            owner.register_buffer(leaf, torch.empty_like(value))
        elif leaf in owner._buffers:
            old = owner._buffers[leaf]
            if old is None or old.shape != value.shape:
                owner._buffers[leaf] = torch.empty_like(value, device=None if old is None else old.device)
        elif owner._parameters.get(leaf) is not None and owner._parameters[leaf].shape != value.shape:
            parameter = owner._parameters[leaf]
            assert parameter is not None
            empty = torch.empty(value.shape, dtype=parameter.dtype, device=parameter.device)
            owner._parameters[leaf] = nn.Parameter(empty, requires_grad=parameter.requires_grad)


def _check_growth(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    changed = sum(one != other for one, other in zip(old, new, strict=False))
    if len(old) != len(new) or (changed > 1 and 0 not in old):
        raise UserError(
            f"the saved {name} has the shape {list(new)}, which does not follow from {list(old)}."
        )


def check_parameters(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that saved parameters have the shapes of a module's own.

    Raises:
        UserError: If one has another; the message names it.
    """
    for name, parameter in module.named_parameters():
        if name in state and state[name].shape != parameter.shape:
            raise UserError(
                f"the saved {name} has the shape {list(state[name].shape)}, expected {list(parameter.shape)}."
            )


def grow_rows(tensor: Tensor, rows: int, fill: float = 0.0) -> Tensor:
    """Return `tensor` [n, ...] with rows of `fill` appended until it has `rows`; itself if it has as many.

    >>> grow_rows(torch.ones(1, 2), 2)
    tensor([[1., 1.],
            [0., 0.]])
    """
    missing = rows - tensor.shape[0]
    if missing <= 0:
        return tensor
    return torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), fill)])

"""Sums over the processes of a distributed run; with one process everything stays as it is."""

from torch import Tensor, distributed

__all__ = ["is_of_a_lost_process", "process", "processes", "sum_over_processes"]


def processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


def sum_over_processes(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, which every process gets.

    Args:
        tensors: Tensors, the same ones in every process.
    """
    if processes() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def is_of_a_lost_process(error: BaseException) -> bool:
    """Return whether an error says that another process of the run does not answer any more."""
    known = getattr(distributed, "DistError", ())
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, known) or ("gloo" in str(error) and any(word in str(error) for word in lost))

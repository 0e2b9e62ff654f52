"""Calls for workers, in a module that their processes can import."""

from __future__ import annotations


def fail(error: Exception) -> None:
    """Raise an error."""
    raise error


def count_threads() -> int:
    """Threads that torch takes in this process."""
    import torch

    return torch.get_num_threads()

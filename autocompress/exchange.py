"""Exchanges between processes that train together, and how they fail when one of these is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autocompress.errors import TeamBroken, one_line

GLOO = "gloo/"
"""What is in the texts of gloo's errors, all of which name its source files; torch gives them no class of their own."""


@contextmanager
def exchanging(told: str = "training together was cut short") -> Iterator[None]:
    """Tell what fails because others are gone from what fails by itself, as memory that runs out does.

    Args:
        told: What was cut short, for the message.

    Raises:
        TeamBroken: In place of torch's error, if others are gone.
    """
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and GLOO not in str(error):
            raise
        raise TeamBroken(f"{told}: {one_line(error)}") from error

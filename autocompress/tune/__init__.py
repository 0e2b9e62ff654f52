"""Our search under Ray Tune: a searcher that proposes trials, and the trainable that carries one out."""

from __future__ import annotations

try:
    import ray.tune  # noqa: F401
except ImportError as error:
    raise ImportError(
        "autocompress.tune needs Ray Tune, which is not installed; install it by: pip install 'autocompress[ray]'"
    ) from error

from autocompress.tune.searcher import AutocompressSearcher
from autocompress.tune.trials import trainable

__all__ = ["AutocompressSearcher", "trainable"]

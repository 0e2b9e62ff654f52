"""Search strategies: what to try next."""

from autocompress.strategies._base import STRATEGIES, SearchStrategy

__all__ = ["STRATEGIES", "SearchStrategy"]

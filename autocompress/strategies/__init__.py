"""Search strategies: what to try next."""

from autocompress.strategies._base import STRATEGIES, Problem, SearchStrategy

__all__ = ["STRATEGIES", "Problem", "SearchStrategy"]

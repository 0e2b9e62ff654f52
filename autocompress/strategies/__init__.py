"""Search strategies: what to try next."""

from autocompress.strategies._base import STRATEGIES, Fits, Problem, SearchStrategy, always

__all__ = ["STRATEGIES", "Fits", "Problem", "SearchStrategy", "always"]

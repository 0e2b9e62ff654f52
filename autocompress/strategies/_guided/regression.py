"""Linear regression that begins with a belief and says how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress.data import Array


@dataclass(frozen=True)
class Fit:
    """A normal distribution over coefficients.

    Args:
        mean: Coefficients (features,).
        covariance: Of the coefficients (features, features).
    """

    mean: Array
    covariance: Array

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Expected values and standard deviations of rows of features (rows, features)."""
        spread = (features @ self.covariance * features).sum(axis=1)
        return features @ self.mean, np.sqrt(np.maximum(spread, 0.0))


def fit(features: Array, values: Array, noise: Array, prior_mean: Array, prior_deviation: Array) -> Fit:
    """The belief after some observations.

    Args:
        features: (rows, features).
        values: What was observed (rows,).
        noise: Standard deviation of each observation (rows,).
        prior_mean, prior_deviation: The belief before (features,).

    References:
        Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3.
    """
    scaled = features / noise[:, None]
    precision = scaled.T @ scaled + np.diag(prior_deviation**-2.0)
    covariance = np.linalg.inv(precision)
    mean = covariance @ (scaled.T @ (values / noise) + prior_mean / prior_deviation**2)
    return Fit(mean, covariance)

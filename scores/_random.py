"""Probabilities for a random order of N images, R of them matches."""
import numpy as np


def harmonic(n):
    """Return 1 + 1/2 + … + 1/n for integers n >= 1, float64, exact to rounding."""
    n = np.asarray(n, np.float64)
    few = np.cumsum(1 / np.arange(1, 65))
    series = np.log(n) + np.euler_gamma + 1 / (2 * n) - 1 / (12 * n ** 2) + 1 / (120 * n ** 4) - 1 / (252 * n ** 6)
    return np.where(n <= 64, few[np.minimum(n, 64).astype(int) - 1], series)


def without_match_in_first(k, matches, valid):
    """Return the probability that none of the first k images is a match, for int64 [Q] matches R and images N."""
    drawn = np.arange(k)[:, None]  # After so many images without a match N - drawn are left, R of them matches.
    left = np.maximum(valid - drawn, 1)
    return np.prod(np.maximum(valid - matches - drawn, 0) / left, axis=0)

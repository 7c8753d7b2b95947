"""Squared Euclidean distance: Σ (a - b)²."""

TERM = 'square'
NORMALIZED = False


def of_sum(sums, math):
    """Return the sums."""
    return sums

"""City-block distance: Σ |a - b|."""

TERM = 'absolute'
NORMALIZED = False


def of_sum(sums, math):
    """Return the sums."""
    return sums

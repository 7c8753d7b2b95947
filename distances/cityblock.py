"""City-block distance: Σ |a - b|."""

TERM = 'absolute'
NORMALIZED = False


def from_sum(sums, math):
    """Return the sums."""
    return sums

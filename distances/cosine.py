"""Cosine distance: 1 - cos(a, b), as half the squared distance of embeddings of length one, which is never below 0."""

TERM = 'square'
NORMALIZED = True


def from_sum(sums, math):
    """Return half the sums."""
    return sums / 2

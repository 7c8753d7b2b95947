"""Euclidean distance: sqrt(Σ (a - b)² + 1e-12)."""

TERM = 'square'
NORMALIZED = False


def from_sum(sums, math):
    """Return the root; 1e-12 keeps its gradient at 0 finite."""
    return math.sqrt(sums + 1e-12)

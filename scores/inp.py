"""mINP: mean inverse negative penalty (Ye et al. 2021, section 3.2), matches per image up to the last match."""
import numpy as np


def scores(ranks):
    """Yield the inverse negative penalty."""
    yield 'mINP', ranks.matches / np.where(ranks.matched, ranks.last_match_rank, np.nan)

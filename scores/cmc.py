"""rank-k: the fraction of queries whose first match has at most rank k (cumulative matching characteristic)."""
import numpy as np

from scores import _random

RANKS = (1, 5, 10, 20)


def scores(ranks):
    """Yield rank-1, rank-5, rank-10 and rank-20."""
    for k in RANKS:
        yield f'rank-{k}', np.where(ranks.matched, ranks.first_match_rank <= k, np.nan)


def chance(matches, valid):
    """Yield their expected values for random rankings."""
    for k in RANKS:
        yield f'rank-{k}', 1 - _random.without_match_in_first(k, matches, valid)

"""Confidence intervals of scores, by bootstrap over identities."""
import numpy as np

CONFIDENCE = 0.95
SAMPLES = 1000
SEED = 0


def interval(pids, scores):
    """The confidence interval of the mean of each score, by bootstrap over identities (percentiles).

    Queries of one person are alike: to draw persons and not queries keeps that from looking like certainty.

    Args:
        pids: identity of each query [Q].
        scores: float [Q, S].

    Returns: two lists [S], lower and upper ends.
    """
    number_of = {}
    person = np.array([number_of.setdefault(pid, len(number_of)) for pid in pids])
    sums = np.stack([np.bincount(person), *(np.bincount(person, score) for score in scores.T)], axis=1)
    random = np.random.default_rng(SEED)
    means = np.empty((SAMPLES, scores.shape[1]))
    for sample in range(SAMPLES):
        count, *totals = sums[random.integers(len(sums), size=len(sums))].sum(axis=0)
        means[sample] = np.divide(totals, count)
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0).tolist()

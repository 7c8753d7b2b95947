"""Confidence intervals of scores, by bootstrap over identities."""
import numpy as np

from tripletreid.evaluation import chunks

CONFIDENCE = 0.95
SAMPLES = 1000
SEED = 0
FEWEST = 5  # Fewer identities get no interval; `benchmarks/intervals.py` measures the coverage with more.
AT_ONCE = 1 << 17  # Numbers drawn at once, so that all intermediate values stay in the CPU cache.
NOTHING = 1e-9  # Smaller numbers are rounding errors.


def interval(pids, scores, lowest=0):
    """Compute the confidence interval of the mean of each score, by bootstrap-t over identities.

    Queries of one identity are similar, so that identities are drawn and not queries. A few identities do not determine
    the spread well either, which bootstrap-t (Efron and Tibshirani 1993, section 12.5) accounts for: it draws the number
    of standard errors by which the mean is off, with the standard error of each draw. Each end of the interval is the
    further one of the equal-tailed and the symmetric interval: the first is too short where few identities were seen,
    the second for skewed scores.

    Args:
        pids: identity of each query [Q].
        scores: float [Q, S], from `lowest` to 1.
        lowest: the least possible score, 0, or -1 for differences.

    Returns: a list [S] of (lower end, upper end), or of None where there are too few identities: fewer than FEWEST, or
        nearly all of them with an equal score, so that too many draws have no spread.
    """
    number_of = {}
    person = np.array([number_of.setdefault(pid, len(number_of)) for pid in pids])
    if len(number_of) < FEWEST:
        return [None] * scores.shape[1]
    sums = np.stack([np.bincount(person), *(np.bincount(person, score) for score in scores.T)], axis=1)
    (mean,), (error,) = _means_and_errors(sums[None])
    random = np.random.default_rng(SEED)
    off = []  # Error of each draw's mean, in standard errors.
    for some in chunks.slices(SAMPLES, max(1, AT_ONCE // sums.size)):
        means, errors = _means_and_errors(sums[random.integers(len(sums), size=(some.stop - some.start, len(sums)))])
        off.append(_ratio(means - mean, errors))
    off = np.concatenate(off)
    tail = (1 - CONFIDENCE) / 2
    symmetric = np.quantile(np.abs(off), CONFIDENCE, axis=0, method='higher')
    below = np.maximum(symmetric, np.quantile(off, 1 - tail, axis=0, method='higher'))
    above = np.maximum(symmetric, -np.quantile(off, tail, axis=0, method='lower'))
    known = np.isfinite(below) & np.isfinite(above) & (error > NOTHING)
    return [(max(m - low * e, lowest), min(m + high * e, 1)) if all_known else None
            for m, e, low, high, all_known in zip(*(each.tolist() for each in (mean, error, below, above, known)))]


def _ratio(distances, errors):
    """Return distances in standard errors: infinite where the error is only rounding, and 0 for a distance of 0."""
    distances = np.where(np.abs(distances) > NOTHING, distances, 0)
    infinite = np.copysign(np.inf, distances)
    ratio = np.divide(distances, errors, out=infinite, where=errors > NOTHING)
    return np.where(distances == 0, 0, ratio)


def _means_and_errors(sums):
    """Return means of scores over all queries and their standard errors, two arrays [n, S].

    Args:
        sums: number of queries and sums of their scores for each of I identities, float [n, I, 1 + S].
    """
    persons = sums.shape[1]
    totals = sums.sum(axis=1)
    counts = totals[:, :1]
    means = totals[:, 1:] / counts
    # A mean over queries is a ratio of two sums over persons (Cochran 1977, section 6.3).
    residuals = sums[:, :, 1:] - means[:, None] * sums[:, :, :1]
    squares = np.einsum('nis,nis->ns', residuals, residuals)
    return means, np.sqrt(squares * persons / (persons - 1)) / counts

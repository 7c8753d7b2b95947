"""mAP: average precision by two definitions; `evaluate.py --use_market_ap` chooses the one that is called mAP."""
import numpy as np

from scores import _random


def scores(ranks):
    """Yield the two average precisions."""
    yield 'mAP_sklearn', ranks.ap_sklearn
    yield 'mAP_market1501', ranks.ap_market1501


def chance(matches, valid):
    """Yield their expected values for random rankings.

    With N images, R matches and H the harmonic numbers, E[AP] = (H(N) + (R - 1)(N - H(N)) / (N - 1)) / N, since an image
    is a match with probability R / N and two images are with probability R(R - 1) / (N(N - 1)). The precision just before
    a match, of which the benchmark's trapezoids take the mean with it, is expected to be R / N.
    """
    harmonic = _random.harmonic(valid)
    ap = (harmonic + (matches - 1) * (valid - harmonic) / np.maximum(valid - 1, 1)) / valid
    yield 'mAP_sklearn', ap
    yield 'mAP_market1501', (ap + matches / valid) / 2

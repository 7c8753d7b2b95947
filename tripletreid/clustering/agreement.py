"""How well two partitions agree: purity, NMI, ARI, and precision, recall and F over pairs of images."""
import dataclasses

import numpy as np

from tripletreid.clustering.partition import with_singletons


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Scores of a partition against identities. Each outlier counts as a cluster of its own."""
    purity: float
    nmi: float
    ari: float
    precision: float
    recall: float
    f: float


def agreement(labels, identities):
    """Compare a partition with the true identities.

    Args:
        labels: int64 [N], -1 for outliers.
        identities: numbers of the identities, int64 [N]; -1 for junk, which is not compared.

    Returns: `Agreement`.
    """
    labels, identities = labels[identities >= 0], identities[identities >= 0]
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    clusters = with_singletons(labels)
    precision, recall, f = pairwise(labels, identities)
    counts = _contingency(clusters, identities)
    return Agreement(purity=float(counts.max(axis=1).sum() / len(labels)),
                     nmi=float(normalized_mutual_info_score(identities, clusters)),
                     ari=float(adjusted_rand_score(identities, clusters)), precision=precision, recall=recall, f=f)


def pairwise(labels, identities):
    """Return precision, recall and F over the pairs of images that a partition joins; 0 where there is no pair."""
    clusters, identities = with_singletons(labels), with_singletons(identities)
    joined = _pairs(_contingency(clusters, identities).data)
    found, true = _pairs(np.bincount(clusters)), _pairs(np.bincount(identities))
    precision, recall = (float(joined / total) if total else 0.0 for total in (found, true))
    return precision, recall, 2 * precision * recall / (precision + recall) if joined else 0.0


def _pairs(counts):
    counts = counts.astype(np.float64)
    return (counts * (counts - 1)).sum() / 2


def _contingency(clusters, identities):
    """Number of images of each cluster and identity, sparse int64 [C, I]."""
    from scipy import sparse
    counts = sparse.coo_array((np.ones(len(clusters), np.int64), (clusters, identities))).tocsr()
    counts.sum_duplicates()
    return counts

"""The threshold of a clustering, chosen by the data: all thresholds are tried on one graph, and compared."""
import dataclasses

import numpy as np

from tripletreid.clustering import agreement, partition

NEAR_BEST = 0.95  # Fraction of the best silhouette that the chosen threshold has at least.
LARGE_SHARE = 0.1  # A cluster with a larger fraction of the images is suspicious,
LARGE_SIZE = 10  # unless there are few images,
LARGE_FACTOR = 10  # or the other clusters are of similar size: suspicious are so many times the mean size.


@dataclasses.dataclass(frozen=True)
class Row:
    """A threshold in the table of a sweep.

    threshold: of the distances.
    clusters, outliers: their numbers. median_size: of the clusters. largest: fraction of the images in the largest one.
    silhouette: mean over all images, outliers with 0, see `silhouette`.
    stability: pairwise F of this partition against the one at the threshold before; None for the first threshold.
    agreement: `agreement.Agreement` with known identities, or None.
    """
    threshold: float
    clusters: int
    outliers: int
    median_size: float
    largest: float
    silhouette: float
    stability: float | None
    agreement: object


def sweep(clustering, graph, thresholds, identities=None, min_size=2):
    """Try thresholds on one graph.

    Args:
        clustering: as `partition.make` returns it.
        graph: of the same images, with all pairs below distance 1.
        thresholds: ascending floats.
        identities: known numbers of identities [N], or None.
        min_size: smaller clusters are outliers.

    Returns: list of `Row`.
    """
    similarities = graph.copy()
    similarities.data = 1 - similarities.data
    rows, before = [], None
    for threshold in thresholds:
        labels = partition.without_small(clustering.labels(threshold), min_size)
        counts = partition.sizes(labels)
        rows.append(Row(
            threshold=float(threshold), clusters=len(counts), outliers=int((labels < 0).sum()),
            median_size=float(np.median(counts)) if len(counts) else 0.0,
            largest=float(counts.max(initial=0) / len(labels)), silhouette=silhouette(similarities, labels),
            stability=None if before is None else agreement.pairwise(labels, before)[2],
            agreement=None if identities is None else agreement.agreement(labels, identities)))
        before = labels
    return rows


def silhouette(similarities, labels):
    """Compute the mean silhouette (Rousseeuw 1987) of a partition on a sparse graph.

    Pairs that the graph does not store have similarity 0. Outliers count with 0, so that a partition cannot win by
    rejecting nearly all images.

    Args:
        similarities: sparse [N, N], 1 minus the distances, without a diagonal.
        labels: int64 [N].
    """
    from scipy import sparse
    counts = partition.sizes(labels)
    members = np.flatnonzero(labels >= 0)
    if not len(members):
        return 0.0
    belongs = sparse.csr_array((np.ones(len(members)), (members, labels[members])), (len(labels), len(counts)))
    sums = (similarities @ belongs).tocoo()
    own = labels[sums.row] == sums.col
    own_sum, other_mean = np.zeros(len(labels)), np.zeros(len(labels))
    own_sum[sums.row[own]] = sums.data[own]
    np.maximum.at(other_mean, sums.row[~own], sums.data[~own] / counts[sums.col[~own]])
    within = 1 - own_sum[members] / (counts[labels[members]] - 1).clip(1)
    between = 1 - other_mean[members]
    values = (between - within) / np.maximum(within, between).clip(1e-12)
    values[counts[labels[members]] == 1] = 0
    return float(values.sum() / len(labels))


def choose(rows):
    """Choose the threshold of a sweep: the largest one at which the silhouette is still near its best.

    At small thresholds clusters are pure and many images are outliers; with a rising threshold the clusters grow, until
    different identities merge and the silhouette falls.

    Returns: `Row`, or None where no threshold gives a cluster.
    """
    best = max((row.silhouette for row in rows if row.clusters), default=None)
    if best is None:
        return None
    enough = [row for row in rows if row.clusters and row.silhouette >= min(best, NEAR_BEST * best)]
    return enough[-1]


def nearest_to_count(rows, count):
    """Return the `Row` whose number of clusters is nearest to a known number of individuals, the best by silhouette."""
    return min(rows, key=lambda row: (abs(row.clusters - count), -row.silhouette))


def doubt(counts, total):
    """Return a sentence about a cluster that swallows many images, or None; `counts` are the sizes of all clusters."""
    largest = int(counts.max(initial=0))
    others = (counts.sum() - largest) / max(len(counts) - 1, 1)
    if largest <= max(LARGE_SIZE, LARGE_SHARE * total) or len(counts) > 1 and largest <= LARGE_FACTOR * others:
        return None
    return (f'One cluster holds {largest} of {total} images ({largest / total:.0%}): at this threshold different '
            f'individuals merge. Take a smaller --threshold, or look at it with visualize.py clusters.')


def table(rows, chosen=None):
    """Return the lines of the table that is printed, the chosen threshold marked by an arrow."""
    known = any(row.agreement for row in rows)
    head = '  threshold  clusters  outliers  median size  largest  stability  silhouette'
    head += '  purity    NMI    ARI  precision  recall      F' if known else ''
    lines = [head]
    for row in rows:
        stability = '     -' if row.stability is None else f'{row.stability:6.3f}'
        line = (f'{"→" if row is chosen else " "} {row.threshold:9.3f}  {row.clusters:8}  {row.outliers:8}  '
                f'{row.median_size:11g}  {row.largest:7.1%}  {stability:>9}  {row.silhouette:10.3f}')
        if row.agreement:
            scores = row.agreement
            line += (f'  {scores.purity:6.3f}  {scores.nmi:5.3f}  {scores.ari:5.3f}  {scores.precision:9.3f}  '
                     f'{scores.recall:6.3f}  {scores.f:5.3f}')
        lines.append(line)
    return lines

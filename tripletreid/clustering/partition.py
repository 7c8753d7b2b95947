"""Clusters of a sparse graph of distances at a threshold. A partition is an array of labels; outliers have label -1."""
import numpy as np

from tripletreid.errors import InputError

METHODS = ('dbscan', 'agglomerative')
MOST_AGGLOMERATED = 20000  # Average linkage holds the distances of all pairs: 1.6 GB for so many images.


class Dbscan:
    """scikit-learn's DBSCAN on the sparse graph: dense regions become clusters, images outside of them outliers."""
    thresholds = np.arange(0.2, 0.8001, 0.025).round(3)

    def __init__(self, graph, min_samples=4):
        """Takes a graph as `jaccard_graph` returns it, and the number of near images that make a dense region."""
        from scipy import sparse
        from sklearn.neighbors import sort_graph_by_row_values
        self._min_samples = min_samples
        # With the diagonal and sorted rows scikit-learn reads the graph as it is, at every threshold.
        graph = sparse.csr_matrix(graph + sparse.diags_array(np.full(graph.shape[0], -1.0), format='csr'))
        graph.data[graph.data == -1] = 0
        self._graph = sort_graph_by_row_values(graph, warn_when_not_sorted=False)

    def labels(self, threshold):
        """Return the labels int64 [N] at a threshold."""
        from sklearn.cluster import DBSCAN
        found = DBSCAN(eps=threshold, min_samples=self._min_samples, metric='precomputed').fit(self._graph)
        return found.labels_.astype(np.int64)


class Agglomerative:
    """Average linkage: the two clusters with the smallest mean distance merge, until that is above the threshold."""
    thresholds = np.arange(0.3, 0.9501, 0.025).round(3)

    def __init__(self, graph, min_samples=None):
        """Takes a graph as `jaccard_graph` returns it. Raises InputError for more images than memory can hold."""
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform
        count = graph.shape[0]
        if count > MOST_AGGLOMERATED:
            raise InputError(f'--method agglomerative holds the distances of all pairs and takes at most '
                             f'{MOST_AGGLOMERATED} images, not {count}: use --method dbscan.')
        distances = np.ones((count, count), np.float64)
        entries = graph.tocoo()
        distances[entries.row, entries.col] = entries.data
        np.fill_diagonal(distances, 0)
        self._tree = linkage(squareform(distances, checks=False), 'average') if count > 1 else None
        self._count = count

    def labels(self, threshold):
        """Return the labels int64 [N] at a threshold; an image alone is an outlier."""
        from scipy.cluster.hierarchy import fcluster
        if self._tree is None:
            return np.full(self._count, -1)
        return without_small(fcluster(self._tree, threshold, 'distance').astype(np.int64) - 1, 2)


def make(method, graph, min_samples):
    """Return the clustering `method`, one of METHODS, of a graph."""
    return {'dbscan': Dbscan, 'agglomerative': Agglomerative}[method](graph, min_samples)


def sizes(labels):
    """Return the number of images of each cluster, int64 [C]."""
    return np.bincount(labels[labels >= 0])


def without_small(labels, min_size):
    """Return labels in which clusters of fewer than `min_size` images are outliers; clusters are numbered from 0 on."""
    counts = sizes(labels)
    kept = counts >= max(min_size, 1)
    numbers = np.where(kept, np.cumsum(kept) - 1, -1)
    return np.where(labels >= 0, numbers[labels] if len(numbers) else -1, -1)


def by_size(labels):
    """Return the same partition with clusters numbered by falling size, equal sizes by their first image."""
    counts = sizes(labels)
    first = np.full(len(counts), len(labels))
    members = np.flatnonzero(labels >= 0)
    np.minimum.at(first, labels[members], members)
    order = np.lexsort((first, -counts))
    numbers = np.empty(len(counts), np.int64)
    numbers[order] = np.arange(len(counts))
    return np.where(labels >= 0, numbers[labels] if len(numbers) else -1, -1)


def with_singletons(labels):
    """Return labels in which each outlier is a cluster of its own."""
    outliers = labels < 0
    alone = labels.copy()
    alone[outliers] = labels.max(initial=-1) + 1 + np.arange(outliers.sum())
    return alone

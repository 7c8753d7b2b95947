"""The sparse graph of Jaccard distances between the k-reciprocal neighbours of unlabelled images."""

import numpy as np

from tripletreid.evaluation import chunks
from tripletreid.evaluation.reranking import k_reciprocal
from tripletreid.evaluation.workers import pool

ENTRIES_AT_ONCE = 1 << 23  # Overlapping weights held at a time: about 200 MB with their columns.


def jaccard_graph(embeddings, metric, k1=30, k2=6, largest=1.0, batch_size=256, workers=1):
    """Compute the Jaccard distances of all pairs of images whose neighbours overlap (Zhong et al. 2017).

    Pairs without a common neighbour have distance 1 and are not stored, so memory grows with the number of images and
    not with its square.

    Args:
        embeddings: open `Embeddings` or an array [N, D].
        metric: one of METRICS.
        k1, k2: as for `reranking.k_reciprocal`.
        largest: pairs at a larger distance are not stored.
        batch_size: images at a time.
        workers: as for `workers.pool`.

    Returns: symmetric sparse float64 [N, N] by row, without its diagonal. Stored values are at least SMALLEST_DISTANCE,
        because sparse matrices treat 0 as not stored.

    Raises:
        InputError: embeddings that cannot be compared.
    """
    nobody = np.empty((0, embeddings.shape[1]), np.float32)
    with pool(workers) as share:
        encodings = k_reciprocal(embeddings, nobody, metric, k1, k2, batch_size=batch_size, workers=share).query_encodings
        return graph_of_encodings(encodings, largest, share)


SMALLEST_DISTANCE = 1e-12


def graph_of_encodings(encodings, largest=1.0, share=map):
    """Compute the graph of `jaccard_graph` from the weights of each image's neighbours, sparse float64 [N, N]."""
    from scipy import sparse
    encodings = sparse.csr_array(encodings)
    encodings.sort_indices()
    count = encodings.shape[0]
    columns = encodings.tocsc()
    # Place of each entry of the rows in its column, whose rows ascend: only rows after its own are paired with it.
    places = np.empty(encodings.nnz, np.int64)
    places[np.argsort(encodings.indices, kind='stable')] = np.arange(encodings.nnz)
    lengths = columns.indptr[encodings.indices + 1] - places - 1
    work = np.concatenate([[0], np.cumsum(lengths)])[encodings.indptr]  # Before each row, and after the last.
    bounds = np.unique(np.searchsorted(work, np.arange(0, work[-1] + ENTRIES_AT_ONCE, ENTRIES_AT_ONCE)).clip(max=count))
    bounds = np.unique([0, *bounds, count])
    parts = [_pairs_of_rows(encodings, columns, places, slice(start, stop), largest)
             for start, stop in zip(bounds, bounds[1:])]
    upper = sparse.vstack(parts, 'csr') if parts else sparse.csr_array((count, count))
    graph = sparse.csr_array(upper + upper.T)
    graph.sort_indices()
    return graph


def _pairs_of_rows(encodings, columns, places, rows, largest):
    """Distances of a slice of the images to the images after them, sparse float64 [n, N]."""
    from scipy import sparse
    entries = slice(encodings.indptr[rows.start], encodings.indptr[rows.stop])
    first, last = places[entries] + 1, columns.indptr[encodings.indices[entries] + 1]
    shared = chunks.ranges(first, last)
    smaller = np.minimum(np.repeat(encodings.data[entries], last - first), columns.data[shared])
    starts = np.concatenate([[0], np.cumsum(last - first)])
    starts = starts[encodings.indptr[rows.start:rows.stop + 1] - encodings.indptr[rows.start]]
    overlaps = sparse.csr_array((smaller, columns.indices[shared], starts), (rows.stop - rows.start, encodings.shape[0]))
    overlaps.sum_duplicates()
    overlaps.data = (1 - overlaps.data / (2 - overlaps.data)).clip(SMALLEST_DISTANCE)
    overlaps.data[overlaps.data > largest] = 0
    overlaps.eliminate_zeros()
    return overlaps

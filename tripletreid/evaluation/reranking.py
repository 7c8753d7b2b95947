"""Re-ranking by k-reciprocal neighbours (Zhong et al. 2017), without a matrix of all pairs."""
import dataclasses

import numpy as np

from tripletreid.evaluation import chunks
from tripletreid.evaluation.distances import ROUNDING, SMALLEST, Distances, check_dimensions
from tripletreid.evaluation.neighbours import nearest_and_furthest

PAIRS_AT_ONCE = 1 << 20  # Pairs of a query and a gallery image whose overlaps are summed at once: 8 MB.


@dataclasses.dataclass
class Reranking:
    """Encodings of all images for re-ranking by k-reciprocal neighbours (Zhong et al. 2017).

    furthest: distance of the image furthest from each query, float64 [Q].
    query_encodings, gallery_encodings: sparse float64 [Q, N] and [G, N], weights of each image's neighbours among all N
        images; rows sum to 1.
    weight: λ of the paper, weight of the original distance.
    """
    furthest: np.ndarray
    query_encodings: object
    gallery_encodings: object
    weight: float

    def applied_to(self, distances, block):
        """Return the `RerankedDistances` of a slice of the queries, given their `Distances`."""
        pairs, jaccard = _jaccard_distances(self.query_encodings[block], self.gallery_encodings.tocsc())
        return RerankedDistances(distances, self.furthest[block], pairs, jaccard, self.gallery_encodings.shape[0],
                                 self.weight)

    def take(self, queries, rows):
        """Return the `Reranking` of some queries and gallery images, given as index arrays or slices."""
        return Reranking(self.furthest[queries], self.query_encodings[queries], self.gallery_encodings[rows], self.weight)


class RerankedDistances:
    """`Distances` after re-ranking: λ · distance / furthest + (1 - λ) · Jaccard distance, with the same methods.

    The Jaccard distance is 1 except for the few pairs whose neighbours overlap; only these are stored.
    """

    def __init__(self, distances, furthest, pairs, jaccard, gallery_size, weight):
        """Combine distances.

        Args:
            distances: the `Distances` of Q queries.
            furthest: float64 [Q].
            pairs, jaccard: as `_jaccard_distances` returns them.
            gallery_size: G.
            weight: λ.
        """
        self.distances = distances
        self.furthest = furthest
        self.pairs = pairs
        self.jaccard = jaccard
        self.gallery_size = gallery_size
        self.weight = weight
        self.prepare = distances.prepare

    def approximate(self, batch, chunk):
        """Compute approximate distances as `Distances` does."""
        approximate, error = self.distances.approximate(batch, chunk)
        scale = self.weight / self.furthest[batch]
        approximate *= scale[:, None].astype(np.float32)
        approximate += np.float32(1 - self.weight)
        first_pair = batch * self.gallery_size
        first = np.searchsorted(self.pairs, first_pair + chunk.rows[0])
        last = np.searchsorted(self.pairs, first_pair + chunk.rows[-1], 'right')
        pairs = chunks.ranges(first, last)
        queries = np.repeat(np.arange(len(batch)), last - first)
        rows = self.pairs[pairs] - first_pair[queries]
        # A chunk need not hold all rows between its first and its last.
        column_of = np.full(chunk.rows[-1] - chunk.rows[0] + 1, -1)
        column_of[chunk.rows - chunk.rows[0]] = np.arange(len(chunk.rows))
        columns = column_of[rows - chunk.rows[0]]
        there = columns >= 0
        nearer = (1 - self.weight) * (1 - self.jaccard[pairs[there]])
        approximate[queries[there], columns[there]] -= nearer.astype(np.float32)
        largest = np.abs(approximate).max(axis=1).astype(np.float64) + 1
        return approximate, error * scale + 16 * ROUNDING * largest

    def exact(self, queries, chunk, columns):
        """Compute exact distances as `Distances` does."""
        pairs = queries * self.gallery_size + chunk.rows[columns]
        place = np.searchsorted(self.pairs, pairs)
        jaccard = np.where(self.pairs[place] == pairs, self.jaccard[place], 1)
        relative = self.distances.exact(queries, chunk, columns) / self.furthest[queries]
        return self.weight * relative + (1 - self.weight) * jaccard


class _Stacked:
    """The embeddings of two sources as one."""

    def __init__(self, first, second):
        self.first, self.second = first, second
        self.shape = len(first) + len(second), first.shape[1]

    def rows(self, start, stop):
        """Read rows [start, stop), float32 [stop - start, D]."""
        border = len(self.first)
        return np.concatenate([chunks.read(self.first, min(start, border), min(stop, border)),
                               chunks.read(self.second, max(start - border, 0), max(stop - border, 0))])


def k_reciprocal(query_embeddings, gallery_embeddings, metric, k1=20, k2=6, weight=0.3, batch_size=256, workers=1):
    """Prepare re-ranking with k-reciprocal encoding (Zhong et al. 2017, sections 3.2 to 3.5, and their code).

    As in the authors' code, queries and gallery are one set, so that junk images and other ignored images count as
    neighbours, and distances are squared (except `cityblock`). Here the sets of neighbours are sparse, and neighbours are
    found while all images are read once: memory grows with the number of images, not with its square.

    Args:
        query_embeddings, gallery_embeddings: open `Embeddings` or arrays [Q, D], [G, D].
        metric: one of METRICS.
        k1: neighbours that may be reciprocal.
        k2: neighbours whose encodings are averaged (local query expansion).
        weight: λ, the weight of the original distance; the Jaccard distance has 1 - λ.
        batch_size: images at a time.
        workers: the workers that share the search for neighbours, as `workers.pool` takes them; the rest takes a tenth
            of its time, less than sending the neighbours to all workers.

    Returns: `Reranking`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    from scipy import sparse
    check_dimensions(query_embeddings, gallery_embeddings)
    everyone = _Stacked(query_embeddings, gallery_embeddings)
    query_count, count = len(query_embeddings), everyone.shape[0]
    near, furthest = nearest_and_furthest(everyone, min(max(k1 + 1, k2), count), metric, batch_size, workers)
    furthest[furthest < SMALLEST] = 1  # All images have equal embeddings.

    def reciprocal(k):
        among_first = _table(near[:, :k])
        return among_first.multiply(among_first.T).tocsr()

    # R(p, k1) is expanded by R(q, k1/2) of each member q that shares more than two thirds of it.
    members = reciprocal(k1 + 1)
    half = reciprocal(round(k1 / 2) + 1)
    shared = (members @ half.T).multiply(members).tocoo()
    accepted = 3 * shared.data > 2 * half.sum(axis=1)[shared.col]
    adopted = sparse.csr_array((accepted[accepted].astype(np.int32), (shared.row[accepted], shared.col[accepted])),
                               members.shape)
    members = (members + adopted @ half).tocoo()

    weights = np.exp(-_pair_distances(everyone, metric, members.row, members.col) / furthest[members.row])
    encoding = sparse.csr_array((weights / np.bincount(members.row, weights)[members.row],
                                 (members.row, members.col)), members.shape)
    expanders = _table(near[:, :k2])
    encoding = expanders @ encoding / min(k2, count)
    return Reranking(furthest[:query_count], encoding[:query_count], encoding[query_count:], weight)


def _table(neighbours):
    """Return the sparse [N, N] matrix with ones at the neighbours [N, k] of each row."""
    from scipy import sparse
    count, k = neighbours.shape
    ones = np.ones(count * k, np.int32)
    return sparse.csr_array((ones, neighbours.ravel(), np.arange(0, count * k + 1, k)), (count, count))


def _pair_distances(source, metric, queries, rows):
    """Compute exact distances, float64 [n], of pairs of images of one source, sorted by `queries`."""
    exact = np.empty(len(queries))
    for block in chunks.slices(source.shape[0], chunks.QUERIES_AT_ONCE):
        distances = Distances(source.rows(block.start, block.stop), metric)
        block_pairs = np.arange(*np.searchsorted(queries, [block.start, block.stop]))
        block_pairs = block_pairs[np.argsort(rows[block_pairs], kind='stable')]
        for chunk_rows, embs in chunks.gallery_chunks(source, 0, source.shape[0]):
            first, last = np.searchsorted(rows[block_pairs], [chunk_rows[0], chunk_rows[-1] + 1])
            pairs = block_pairs[first:last]
            chunk = distances.prepare(chunk_rows, embs)
            exact[pairs] = distances.exact(queries[pairs] - block.start, chunk, rows[pairs] - chunk_rows[0])
    return exact


def _jaccard_distances(queries, gallery):
    """Compute the Jaccard distances of all pairs of images whose neighbours overlap; all others have a distance of 1.

    The overlap is the sum of the smaller of two weights over all neighbours.

    Args:
        queries, gallery: encodings, sparse matrices [Q, N] by row, [G, N] by column.

    Returns: query · G + row of the gallery, int64 [n + 1], sorted, and the distances, float64 [n + 1]. The last entry is
        not a pair, so that every search finds a position.
    """
    pairs, distances = [], []
    gallery_size = gallery.shape[0]
    for block in chunks.slices(queries.shape[0], max(1, PAIRS_AT_ONCE // gallery_size)):
        entries = slice(queries.indptr[block.start], queries.indptr[block.stop])
        query = np.repeat(np.arange(block.stop - block.start), np.diff(queries.indptr[block.start:block.stop + 1]))
        columns = queries.indices[entries]
        first, last = gallery.indptr[columns], gallery.indptr[columns + 1]
        shared = chunks.ranges(first, last)
        smaller = np.minimum(np.repeat(queries.data[entries], last - first), gallery.data[shared])
        pair_overlaps = np.bincount(np.repeat(query * gallery_size, last - first) + gallery.indices[shared], smaller)
        overlapping = np.flatnonzero(pair_overlaps)
        pairs.append(block.start * gallery_size + overlapping)
        distances.append(1 - pair_overlaps[overlapping] / (2 - pair_overlaps[overlapping]))
    pairs = np.concatenate([*pairs, [np.iinfo(np.int64).max]])  # One array after the other, because they are large.
    return pairs, np.concatenate([*distances, [1.0]])

"""Distances between embeddings, a chunk of the gallery at a time: all of them approximately, or few of them exactly.

The distance of two images is defined as a sum over the differences of their coordinates in float64: a function of the
two rows alone. A float32 matrix product is much faster, but gives a pair of rows other last bits in chunks of other
shapes. Its error is bounded, though, and only the pairs that it cannot decide are measured exactly.
"""
import dataclasses
import functools

import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation import chunks

METRICS = ('euclidean', 'sqeuclidean', 'cityblock', 'cosine')
CACHED_NUMBERS = 1 << 16  # Differences at once: of as many the processor's cache holds all intermediate values.
ROUNDING = 2.0 ** -24  # Largest relative error of one float32 operation,
ROUNDING_OF_FLOAT64 = 2.0 ** -53
SMALLEST = 2.0 ** -120  # but where numbers are as small as this.
LARGEST = 2.0 ** 120  # A float32 sum of squares overflows soon behind this.
SUMMED_AT_ONCE = 256  # Coordinates; the sums of so many are added up then, which bounds the error of long sums.
OUTLIER = 16  # An image whose size is as many times the usual one is no measure of the others' error.


@dataclasses.dataclass
class Chunk:
    """Some images of the gallery, made ready by `Distances.prepare`.

    rows: their rows, int64 [C], ascending.
    embs: float32 [C, D].
    centred: float32 [C, D], what the approximate distances are computed from; float64 for `PreciseDistances`.
    sizes: as precise [C], squared norms of `centred`; for cityblock its sums of absolute values.
    """
    rows: np.ndarray
    embs: np.ndarray
    centred: np.ndarray
    sizes: np.ndarray

    def take(self, columns):
        """The chunk of some of the images, or of all in another order, given a slice or an index array."""
        return Chunk(self.rows[columns], self.embs[columns], self.centred[columns], self.sizes[columns])


class Distances:
    """Distances from some queries to chunks of a gallery: all of them approximately, or few of them exactly.

    They are in the unit that images are compared in, which spares the root: the squared distance for `euclidean` and
    `sqeuclidean`, that of the embeddings scaled to length one for `cosine` (twice the cosine distance).
    """
    dtype = np.float32  # Of approximate distances.

    def __init__(self, queries, metric, centred=True):
        """Takes embeddings float32 [Q, D] and one of METRICS.

        Norms enter the error bound: what all embeddings have in common is better taken away first. But then `Chunk`s are
        of use for these queries alone; those that are `centred` nowhere are made ready for any.
        """
        self.queries = queries
        self.metric = metric
        self.centre = np.zeros(queries.shape[1], np.float32)
        if centred and metric != 'cosine':
            sizes = np.einsum('nd,nd->n', queries, queries)
            usual = sizes <= OUTLIER * np.median(sizes)  # One that is very long would move the mean away from all.
            self.centre = queries[usual].mean(axis=0, dtype=np.float64).astype(np.float32)
        self.centred, self.sizes = self._centre(queries, 'queries')

    def prepare(self, rows, embs):
        """The `Chunk` of the gallery's rows [C] and their embeddings [C, D].

        Raises:
            InputError: numbers too large to be squared, or, for `cosine`, embeddings of length zero.
        """
        return Chunk(rows, embs, *self._centre(embs, 'gallery'))

    def approximate(self, batch, chunk):
        """Distances of the queries with the numbers `batch` [B] to a chunk, and how far they are from exact ones.

        Returns: float32 [B, C], and a bound of their absolute errors, float64 [B].
        """
        dim = self.queries.shape[1]
        if self.metric == 'cityblock':
            approximate = _cityblock(self.centred[batch], chunk.centred)
            largest = self.sizes[batch].astype(np.float64) + chunk.sizes.max()
            roundings = dim
        else:
            # With one query it takes as long as reading the chunk: threads of BLAS would only wait for each other.
            product = np.matmul if len(batch) > 1 else functools.partial(np.einsum, 'nd,dm->nm')
            approximate = _sum_of_products(product, -2 * self.centred[batch], chunk.centred.T)
            approximate += chunk.sizes
            approximate += self.sizes[batch, None]
            largest = (np.sqrt(self.sizes[batch], dtype=np.float64) + np.sqrt(chunk.sizes.max())) ** 2
            roundings = min(dim, SUMMED_AT_ONCE) + dim // SUMMED_AT_ONCE
        # A sum of n products is off by at most n roundings of the sum of their absolute values, in whatever order it
        # is computed (Higham 2002, section 3.1; for sums of sums section 4.2). The 16 stand for centring, adding the
        # sizes, and comparing.
        return approximate, 1.01 * (roundings + 16) * ROUNDING * largest + dim * SMALLEST

    def exact(self, queries, chunk, columns):
        """Distances of pairs, float64 [n], for numbers of queries [n] and of images in the chunk [n]."""
        exact = np.empty(len(queries))
        for some in chunks.slices(len(queries), max(1, CACHED_NUMBERS // self.queries.shape[1])):
            differences = self._float64(self.queries[queries[some]]) - self._float64(chunk.embs[columns[some]])
            size = np.abs if self.metric == 'cityblock' else np.square
            exact[some] = size(differences, out=differences).sum(axis=1)
        return exact

    def _float64(self, embs):
        embs = embs.astype(np.float64)
        if self.metric == 'cosine':
            embs /= np.sqrt(np.square(embs).sum(axis=1, keepdims=True))
        return embs

    def _centre(self, embs, whose):
        if self.metric == 'cosine':
            if not embs.any(axis=1).all():
                raise InputError(f'There are embeddings of all zeros among the {whose}; they have no cosine distance.')
            embs = self._float64(embs)
        with np.errstate(over='ignore'):  # The sentence below says it.
            centred = embs.astype(self.dtype, copy=False) - self.centre
            if self.metric == 'cityblock':
                sizes = np.abs(centred).sum(axis=1)
            else:
                sizes = _sum_of_products(functools.partial(np.einsum, 'nd,dn->n'), centred, centred.T)
        if not sizes.max(initial=0) < LARGEST:
            raise InputError(f'There are numbers as large as {np.abs(embs).max():.3g} in the embeddings of the {whose}: '
                             f'too large to be compared.')
        return centred, sizes


class PreciseDistances(Distances):
    """`Distances` whose approximate ones are float64, with a bound of their errors a thousand million times as small.

    They take about twice as long. Where many distances are to be told from one another, nearly all are told by these.
    """
    dtype = np.float64

    @functools.cached_property
    def factors(self):
        """What the products with a chunk are made of, float64 [Q, D + 2]."""
        return np.column_stack([-2 * self.centred, self.sizes, np.ones(len(self.queries))])

    def prepare(self, rows, embs):
        chunk = super().prepare(rows, embs)
        if self.metric != 'cityblock':  # To have the sizes added by the product spares two passes over its result.
            chunk.centred = np.column_stack([chunk.centred, np.ones(len(rows)), chunk.sizes])
        return chunk

    def approximate(self, batch, chunk):
        """As that of `Distances`, but float64 [B, C]."""
        dim = self.queries.shape[1]
        if self.metric == 'cityblock':
            approximate = _cityblock(self.centred[batch], chunk.centred)
            largest = self.sizes[batch] + chunk.sizes.max()
        else:
            approximate = self.factors[batch] @ chunk.centred.T
            largest = (np.sqrt(self.sizes[batch]) + np.sqrt(chunk.sizes.max())) ** 2
        # Twice, because in float64 the exact ones are rounded as well.
        return approximate, 2.02 * (dim + 18) * ROUNDING_OF_FLOAT64 * largest + dim * SMALLEST


def _sum_of_products(product, a, b):
    """product(a, b) for [N, D] and [D, M], as the sum of its values for a few of the D at a time."""
    first, *others = chunks.slices(a.shape[1], SUMMED_AT_ONCE)
    total = product(a[:, first], b[first])
    part = np.empty_like(total) if others else None
    for some in others:
        total += product(a[:, some], b[some], out=part)
    return total


def similar_in_size(sizes):
    """Groups of images none of which is far larger than most of its group: a list of positions int64 [n], ascending.

    The error bound of `approximate` is that of the largest image of a chunk: a single one that is a thousand times as
    long as the others would leave nearly all pairs of its chunk undecided.

    Args:
        sizes: float32 [C], as in `Chunk`.
    """
    groups, left = [], np.arange(len(sizes))
    while len(left):
        usual = sizes[left] <= OUTLIER * np.median(sizes[left])
        groups.append(left[usual])
        left = left[~usual]
    return groups


def _cityblock(queries, gallery):
    """Sums of absolute differences, [B, C], for [B, D] and [C, D], all of one type."""
    dim = queries.shape[1]
    sums = np.empty((len(queries), len(gallery)), queries.dtype)
    ones = np.ones(dim, queries.dtype)
    for columns in chunks.slices(len(gallery), max(1, CACHED_NUMBERS // dim)):
        part = gallery[columns]
        differences = np.empty_like(part)
        for query, row in zip(queries, sums):
            np.subtract(part, query, out=differences)
            np.abs(differences, out=differences)
            np.dot(differences, ones, out=row[columns])
    return sums


def shown(exact, metric):
    """Distances as `Distances.exact` gives them, in the metric's own unit."""
    if metric == 'euclidean':
        return np.sqrt(exact + 1e-12)
    return exact / 2 if metric == 'cosine' else exact


def shown_up_to(distance, metric):
    """The largest distances that `shown` shows as at most these, float64 [n]; -1 where it shows even 0 as more."""
    # Floats that are not negative sort as the integers of the same bits.
    low = np.full(len(distance), -1)
    high = np.full(len(distance), np.float64(np.inf).view(np.int64))
    while (high - low > 1).any():
        middle = low + (high - low) // 2
        fits = shown(middle.view(np.float64), metric) <= distance
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(low < 0, -1.0, low.view(np.float64))


def check_dimensions(query_embeddings, gallery_embeddings):
    query_dim, gallery_dim = query_embeddings.shape[1], gallery_embeddings.shape[1]
    if query_dim != gallery_dim or query_dim == 0:
        raise InputError(f'The queries have {query_dim} dimensions and the gallery has {gallery_dim}: embed both with '
                         f'the same model.')

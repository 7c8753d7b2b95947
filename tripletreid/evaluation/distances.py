"""Distances between embeddings, a chunk of the gallery at a time: all of them approximately, or few of them exactly.

The distance of two images is defined as a sum over the differences of their coordinates in float64, which depends only
on the two rows. A float32 matrix product is much faster, but its last bits depend on the shape of the chunk. Its error is
bounded, and only the pairs that it cannot decide are measured exactly.
"""
import dataclasses
import functools

import numpy as np

from tripletreid import metrics
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks

CACHED_NUMBERS = 1 << 16  # Differences at once, so that all intermediate values stay in the CPU cache.
ROUNDING = 2.0 ** -24  # Largest relative error of one float32 operation on numbers above SMALLEST.
ROUNDING_OF_FLOAT64 = 2.0 ** -53  # Largest relative error of one float64 operation.
SMALLEST = 2.0 ** -120  # Largest absolute error of one operation on smaller numbers.
LARGEST = 2.0 ** 120  # Largest sum of squares, well before float32 overflows.
SUMMED_AT_ONCE = 258  # Products per partial sum, which bounds the error of long sums.
OUTLIER = 16  # An image so many times the usual size is excluded from the error bound of the others.
IN_PLACE = {'square': np.square, 'absolute': np.abs}  # Terms that NumPy computes without another array.


@dataclasses.dataclass
class Chunk:
    """Some images of the gallery, prepared by `Distances.prepare`.

    rows: their rows, int64 [C], ascending.
    embs: float32 [C, D].
    centred: [C, D] in the precision of the approximate distances, from which these are computed.
    sizes: [C] in the same precision, squared norms of `centred`, or sums of absolute values where terms are not squares.
    """
    rows: np.ndarray
    embs: np.ndarray
    centred: np.ndarray
    sizes: np.ndarray

    @functools.cached_property
    def factors(self):
        """The factors of products with queries, [C, D + 2]: a product also adds the sizes, without two more passes."""
        return np.column_stack([self.centred, np.ones_like(self.sizes), self.sizes])

    @functools.cached_property
    def tiles(self):
        """The chunk in small parts, whose distances stay in the CPU cache: a list of (slice of its images, `Chunk`)."""
        return [(columns, self.take(columns)) for columns in chunks.slices(len(self.rows), chunks.IMAGES_OF_A_TILE)]

    def take(self, columns):
        """Return a chunk of some of the images, or of all in another order, given a slice or an index array."""
        return Chunk(self.rows[columns], self.embs[columns], self.centred[columns], self.sizes[columns])


class Distances:
    """Distances from some queries to chunks of a gallery: all of them approximately, or few of them exactly.

    They are sums, in the unit in which images are compared, before `from_sum` of the metric: for `euclidean` the squared
    distance, which needs no root, for `cosine` the squared distance of normalized embeddings.
    """
    dtype, rounding = np.float32, ROUNDING  # Precision of approximate distances.

    def __init__(self, queries, metric, centred=True):
        """Prepare queries.

        Args:
            queries: embeddings float32 [Q, D].
            metric: one of METRICS.
            centred: whether to subtract the queries' mean from all embeddings, because norms enter the error bound. A
                `Chunk` is then only valid for these queries.
        """
        self.queries = queries
        self.metric = metrics.load(metric)
        self.centre = np.zeros(queries.shape[1], np.float32)
        if centred and not self.metric.is_normalized:
            sizes = np.einsum('nd,nd->n', queries, queries)
            usual = sizes <= OUTLIER * np.median(sizes)  # A very long one would move the mean away from all others.
            self.centre = queries[usual].mean(axis=0, dtype=np.float64).astype(np.float32)
        self.centred, self.sizes = self._centre(queries, 'queries')

    def prepare(self, rows, embs):
        """Return the `Chunk` of rows [C] of the gallery and their embeddings [C, D].

        Raises:
            InputError: numbers too large to be squared, or embeddings of length zero where the metric normalizes them.
        """
        return Chunk(rows, embs, *self._centre(embs, 'gallery'))

    @functools.cached_property
    def factors(self):
        """The queries' factors of products with a chunk, [Q, D + 2]."""
        return np.column_stack([-2 * self.centred, self.sizes, np.ones_like(self.sizes)])

    def approximate(self, batch, chunk):
        """Compute approximate distances of the queries with the numbers `batch` [B] to a chunk.

        Returns: `dtype` [B, C], and a bound of their absolute errors, float64 [B].
        """
        dim = self.queries.shape[1]
        if self.metric.kind == 'other':
            exact = self._all_exact(batch, chunk)
            return exact.astype(self.dtype), 2 * self.rounding * np.abs(exact).max(axis=1) + SMALLEST
        sizes = self.sizes[batch].astype(np.float64)
        if self.metric.kind == 'absolute':
            approximate = _cityblock(self.centred[batch], chunk.centred)
            largest, roundings = sizes + chunk.sizes.max(), dim
        else:
            if len(batch) > 1:
                approximate = _sum_of_products(np.matmul, self.factors[batch], chunk.factors.T)
            else:  # It takes as long as reading the chunk: threads of BLAS would wait, and factors would take as long again.
                product = functools.partial(np.einsum, 'nd,dm->nm')
                approximate = _sum_of_products(product, -2 * self.centred[batch], chunk.centred.T)
                approximate += chunk.sizes
                approximate += self.sizes[batch, None]
            largest = (np.sqrt(sizes) + np.sqrt(chunk.sizes.max(), dtype=np.float64)) ** 2
            roundings = min(dim, SUMMED_AT_ONCE) + dim // SUMMED_AT_ONCE
        # The error of a sum of n products is at most n roundings of the sum of their absolute values, in any order
        # (Higham 2002, section 3.1; for sums of sums section 4.2). The 16 cover centring, adding the sizes, and
        # comparing. The exact ones are rounded to float64.
        roundings = (roundings + 16) * self.rounding + (dim + 16) * ROUNDING_OF_FLOAT64
        return approximate, 1.01 * roundings * largest + dim * SMALLEST

    def exact(self, queries, chunk, columns):
        """Compute distances of pairs, float64 [n], for numbers of queries [n] and of images in the chunk [n]."""
        exact = np.empty(len(queries))
        in_place = IN_PLACE.get(self.metric.kind)
        for some in chunks.slices(len(queries), max(1, CACHED_NUMBERS // self.queries.shape[1])):
            differences = self._float64(self.queries[queries[some]]) - self._float64(chunk.embs[columns[some]])
            terms = in_place(differences, out=differences) if in_place else self.metric.term(differences, np)
            exact[some] = terms.sum(axis=1)
        return exact

    def _all_exact(self, batch, chunk):
        """Compute exact distances of the queries with the numbers `batch` [B] to a chunk, float64 [B, C]."""
        columns = np.arange(len(chunk.rows))
        return np.stack([self.exact(np.full(len(columns), query), chunk, columns) for query in batch])

    def _float64(self, embs):
        embs = embs.astype(np.float64)
        if self.metric.is_normalized:
            embs /= np.sqrt(np.square(embs).sum(axis=1, keepdims=True))
        return embs

    def _centre(self, embs, whose):
        if self.metric.is_normalized:
            if not embs.any(axis=1).all():
                raise InputError(f'There are embeddings of all zeros among the {whose}; they have no direction to compare.')
            embs = self._float64(embs)
        with np.errstate(over='ignore'):  # Reported below.
            centred = embs.astype(self.dtype, copy=False) - self.centre
            if self.metric.kind != 'square':
                sizes = np.abs(centred).sum(axis=1)
            else:
                sizes = _sum_of_products(functools.partial(np.einsum, 'nd,dn->n'), centred, centred.T)
        if not sizes.max(initial=0) < LARGEST:
            raise InputError(f'There are numbers as large as {np.abs(embs).max():.3g} in the embeddings of the {whose}: '
                             f'too large to be compared.')
        return centred, sizes


class PreciseDistances(Distances):
    """`Distances` with approximate distances in float64, whose error bound is 3e8 times smaller.

    They take about twice as long, and decide nearly all pairs where many distances must be distinguished.
    """
    dtype, rounding = np.float64, ROUNDING_OF_FLOAT64


def _sum_of_products(product, a, b):
    """Compute product(a, b) for [N, D] and [D, M] as the sum of products over a few of the D at a time."""
    first, *others = chunks.slices(a.shape[1], SUMMED_AT_ONCE)
    total = product(a[:, first], b[first])
    part = np.empty_like(total) if others else None
    for some in others:
        total += product(a[:, some], b[some], out=part)
    return total


def similar_in_size(sizes):
    """Group images such that none is far larger than most of its group: a list of ascending positions int64 [n].

    The largest image of a chunk determines the error bound of `approximate`: a single image a thousand times as long as
    the others would leave nearly all pairs of its chunk undecided.

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
    """Compute sums of absolute differences, [B, C], for [B, D] and [C, D] of one type."""
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
    """Convert distances of `Distances.exact` to the metric's own unit."""
    return metrics.load(metric).from_sum(exact, np)


def shown_up_to(distance, metric):
    """Return the largest distances that `shown` converts to at most these, float64 [n]; -1 where even 0 becomes more."""
    # Non-negative floats sort as the integers of the same bits.
    low = np.full(len(distance), -1)
    high = np.full(len(distance), np.float64(np.inf).view(np.int64))
    while (high - low > 1).any():
        middle = low + (high - low) // 2
        fits = shown(middle.view(np.float64), metric) <= distance
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(low < 0, -1.0, low.view(np.float64))


def check_dimensions(query_embeddings, gallery_embeddings):
    """Raise InputError unless queries and gallery have the same dimensions."""
    query_dim, gallery_dim = query_embeddings.shape[1], gallery_embeddings.shape[1]
    if query_dim != gallery_dim or query_dim == 0:
        raise InputError(f'The queries have {query_dim} dimensions and the gallery has {gallery_dim}: embed both with '
                         f'the same model.')

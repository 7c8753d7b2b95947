"""The nearest gallery images of each query, exactly, in a gallery of any size."""
import dataclasses
import functools

import numpy as np

from tripletreid import metrics
from tripletreid.dataset import Dataset
from tripletreid.evaluation import chunks
from tripletreid.evaluation.distances import LARGEST, SMALLEST, Chunk, Distances, check_dimensions, shown
from tripletreid.evaluation.workers import pool

IMAGES_AT_ONCE = 4096  # Images per chunk; with a query batch of 256 their distances, 4 MB, stay in the CPU cache.
PREPARED_NUMBERS = 1 << 18  # Numbers per chunk while a gallery is prepared, which has several copies in float64.
BEGINNING = 48  # Times k: the first images of a chunk, which bound the distance of the k nearest at first.


@dataclasses.dataclass
class Neighbours:
    """The k nearest gallery images of each query, nearest first, at equal distances in the order of the gallery.

    rows: int64 [Q, k], rows of the gallery; -1 after the last image, where there are fewer than k.
    distances: float64 [Q, k], in the metric's own unit; infinite where the row is -1.
    excluded: bool [Q, k], whether the query ignores the image.
    """
    rows: np.ndarray
    distances: np.ndarray
    excluded: np.ndarray


def nearest(retrieval, k, keep_excluded=False):
    """Find the k nearest gallery images of every query.

    Args:
        retrieval: `Retrieval`. With `reranking` the distances are the re-ranked ones, without a unit.
        k: how many, at least 1.
        keep_excluded: also find images that the query ignores, and mark them.

    Returns: `Neighbours`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    check_dimensions(retrieval.query_embeddings, retrieval.gallery_embeddings)
    # Other processes need neither the identities nor the pool.
    without_pids = {name: Dataset('', None, getattr(retrieval, name).fids) for name in ('query_set', 'gallery_set')}
    find = functools.partial(_nearest_of_part, dataclasses.replace(retrieval, workers=1, **without_pids), k, keep_excluded)
    found = Neighbours(*_all_parts(find, len(retrieval), chunks.queries_at_once(retrieval.reranking),
                                      retrieval.workers))
    if retrieval.reranking is None:
        found.distances = shown(found.distances, retrieval.metric)
    return found


class PreparedGallery:
    """A gallery that is searched repeatedly by few queries.

    One or two numbers per image are computed once and kept. The embeddings stay where they are; a search reads them once.
    """

    def __init__(self, embeddings, metric):
        """Read a gallery once.

        Args:
            embeddings: open `Embeddings` or an array [G, D].
            metric: one of METRICS.

        Raises:
            InputError: embeddings that cannot be compared.
        """
        self.embeddings = embeddings
        self.metric = metric
        self.is_normalized = metrics.load(metric).is_normalized
        self.sizes, self.scales = (np.ones(embeddings.shape[0], np.float32) for _ in range(2))
        self.odd_lengths = False
        any_query = Distances(np.ones((1, embeddings.shape[1]), np.float32), metric, centred=False)
        for rows in chunks.slices(embeddings.shape[0], max(1, PREPARED_NUMBERS // embeddings.shape[1])):
            embs = chunks.read(embeddings, rows.start, rows.stop)
            self.sizes[rows] = any_query.prepare(np.arange(rows.start, rows.stop), embs).sizes
            if self.is_normalized:
                lengths = np.sqrt(np.einsum('nd,nd->n', embs, embs, dtype=np.float64))
                self.scales[rows] = 1 / lengths.clip(SMALLEST, LARGEST)
                odd = (lengths < SMALLEST) | (lengths > LARGEST)  # Their scales would not be exact to a rounding.
                self.odd_lengths |= bool(odd.any())

    def nearest(self, queries, k, batch_size=256):
        """Find the k nearest images of queries float32 [Q, D]: the `Neighbours` of `nearest`, to the last bit.

        Raises:
            InputError: queries that cannot be compared with this gallery.
        """
        check_dimensions(queries, self.embeddings)
        distances = Distances(queries, self.metric, centred=False)
        best = _Nearest(distances, len(queries), k)
        for chunk in self._chunks(distances):
            for batch in _batches(len(queries), batch_size):
                best.look_at(batch, chunk, *distances.approximate(batch, chunk))
        return Neighbours(best.rows, shown(best.distances, self.metric), best.excluded)

    def _chunks(self, distances):
        count, dim = self.embeddings.shape
        into = np.empty((min(count, IMAGES_AT_ONCE), dim), np.float32)
        for some in chunks.slices(count, IMAGES_AT_ONCE):
            if hasattr(self.embeddings, 'read_into'):
                embs = self.embeddings.read_into(some.start, into[:some.stop - some.start])
            else:
                embs = chunks.read(self.embeddings, some.start, some.stop)
            rows = np.arange(some.start, some.stop)
            if self.odd_lengths:
                yield distances.prepare(rows, embs)
            else:
                scaled = embs * self.scales[some, None] if self.is_normalized else embs
                yield Chunk(rows, embs, scaled, self.sizes[some])


def nearest_and_furthest(embeddings, k, metric, batch_size=256, workers=1):
    """Find the k nearest images of every image of one set, including itself, and the distance of the furthest.

    Args:
        embeddings: open `Embeddings` or an array [N, D].
        k: how many.
        metric, batch_size, workers: as in `Retrieval`.

    Returns: rows int64 [N, k] as in `Neighbours`, and distances float64 [N], in the unit that `Distances` compares in.

    Raises:
        InputError: embeddings that cannot be compared.
    """
    find = functools.partial(_nearest_and_furthest_of_part, embeddings, k, metric, batch_size)
    return _all_parts(find, embeddings.shape[0], chunks.QUERIES_AT_ONCE, workers)


def _all_parts(find, count, at_once, workers):
    """Join the arrays that find(slice) returns for equal slices of `count` queries, of at most `at_once`."""
    with pool(workers) as share:
        parts = chunks.even_slices(count, at_once, share.count)
        return list(map(np.concatenate, zip(*share(find, parts, 'Neighbours'))))


def _nearest_of_part(retrieval, k, keep_excluded, part):
    """Return rows, distances and exclusion [n, k] for a slice of the queries."""
    distances = Distances(chunks.read(retrieval.query_embeddings, part.start, part.stop), retrieval.metric)
    if retrieval.reranking is not None:
        distances = retrieval.reranking.applied_to(distances, part)
    query_fids, excluder = retrieval.query_set.fids[part], retrieval.excluder
    best = _Nearest(distances, len(query_fids), k)
    for chunk in _prepared(distances, retrieval.gallery_embeddings):
        excluded = excluder(retrieval.gallery_set.fids[chunk.rows]) if excluder else None
        for batch in _batches(len(query_fids), retrieval.batch_size):
            approximate, error = distances.approximate(batch, chunk)
            ignored = excluded(query_fids[batch]) if excluder else None
            if excluder and not keep_excluded:
                approximate[ignored] = np.inf
            best.look_at(batch, chunk, approximate, error, ignored)
    return best.rows, best.distances, best.excluded


def _nearest_and_furthest_of_part(embeddings, k, metric, batch_size, part):
    """Return rows [n, k] of the nearest and distances [n] of the furthest image, for a slice of the images."""
    distances = Distances(chunks.read(embeddings, part.start, part.stop), metric)
    count = part.stop - part.start
    best, furthest = _Nearest(distances, count, k), _Furthest(distances, count)
    for chunk in _prepared(distances, embeddings):
        for batch in _batches(count, batch_size):
            approximate, error = distances.approximate(batch, chunk)
            best.look_at(batch, chunk, approximate, error)
            furthest.look_at(batch, chunk, approximate, error)
    return best.rows, furthest.distances


def _prepared(distances, gallery):
    """Yield the whole gallery in chunks of few images."""
    for rows, embs in chunks.gallery_chunks(gallery, 0, gallery.shape[0]):
        for few in chunks.slices(len(rows), IMAGES_AT_ONCE):
            yield distances.prepare(rows[few], embs[few])


def _batches(count, batch_size):
    return [np.arange(batch.start, batch.stop) for batch in chunks.slices(count, batch_size)]


class _Nearest:
    """The k nearest images among the chunks so far, for n queries: the arrays of `Neighbours`.

    Only images of later chunks that may be nearer than the k-th are measured exactly, and these are few.
    """

    def __init__(self, measure, count, k):
        self.measure = measure
        self.k = k
        self.rows = np.full((count, k), -1)
        self.distances = np.full((count, k), np.inf)
        self.excluded = np.zeros((count, k), bool)

    def look_at(self, batch, chunk, approximate, error, ignored=None):
        """Compare a chunk [C] with the nearest images so far.

        Args:
            batch: numbers of the queries [B].
            chunk: `Chunk`.
            approximate, error: as `Distances.approximate` returns them; infinite for images that are not candidates.
            ignored: bool [B, C], images to mark as excluded; None: none.
        """
        k, count = self.k, len(chunk.rows)
        # The approximate distance of one of the k nearest exceeds the exact distance of the k-th so far by at most one
        # error, and the approximate distance of the k-th of any images by at most two.
        reach = self.distances[batch, -1] + error
        if not np.isfinite(reach).all() and k < count:
            reach = np.minimum(reach, _smallest(approximate[:, :BEGINNING * k], k) + 2 * error)
        queries, columns = np.divmod(np.flatnonzero(approximate <= _finite(reach)[:, None]), count)
        if not len(queries):
            return

        # A table with a row of candidates per query, in the order of the gallery.
        first = np.searchsorted(queries, np.arange(len(batch)))
        place = np.arange(len(queries)) - first[queries]
        shape = len(batch), place.max() + 1
        candidates = np.full(shape, np.inf, np.float32)
        candidates[queries, place] = approximate[queries, columns]
        if shape[1] > k:
            reach = np.minimum(reach, _smallest(candidates, k) + 2 * error)
            near = candidates[queries, place] <= _finite(reach)[queries]
            queries, columns, place = queries[near], columns[near], place[near]

        # The candidates follow the nearest images so far.
        all_distances, all_rows, all_excluded = (
            np.concatenate([table[batch], np.full(shape, missing)], axis=1)
            for table, missing in ((self.distances, np.inf), (self.rows, -1), (self.excluded, False)))
        all_distances[queries, k + place] = self.measure.exact(batch[queries], chunk, columns)
        all_rows[queries, k + place] = chunk.rows[columns]
        if ignored is not None:
            all_excluded[queries, k + place] = ignored[queries, columns]
        order = np.lexsort((all_rows, all_distances))[:, :k]
        self.distances[batch] = np.take_along_axis(all_distances, order, axis=1)
        self.rows[batch] = np.take_along_axis(all_rows, order, axis=1)
        self.excluded[batch] = np.take_along_axis(all_excluded, order, axis=1)


class _Furthest:
    """The distance of the furthest image among the chunks so far, float64 [n], for n queries."""

    def __init__(self, measure, count):
        self.measure = measure
        self.distances = np.full(count, -np.inf)

    def look_at(self, batch, chunk, approximate, error):
        """Compare a chunk, with arguments as `_Nearest.look_at`."""
        largest = approximate.max(axis=1)
        further = np.flatnonzero(largest + error >= self.distances[batch])
        reach = (largest - 2 * error)[further].astype(np.float32)
        queries, columns = np.divmod(np.flatnonzero(approximate[further] >= reach[:, None]), len(chunk.rows))
        queries = batch[further[queries]]
        np.maximum.at(self.distances, queries, self.measure.exact(queries, chunk, columns))


def _smallest(values, k):
    """Return the k-th smallest of each row of [B, C]; infinite where there are fewer."""
    if values.shape[1] < k:
        return np.full(len(values), np.inf)
    return np.partition(values, k - 1, axis=1)[:, k - 1]


def _finite(reach):
    """Return bounds as finite float32 [B], so that images at an infinite distance are out of reach."""
    return np.minimum(reach, np.finfo(np.float32).max).astype(np.float32)

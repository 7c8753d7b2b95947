"""The nearest gallery images of each query, exactly, in a gallery of any size."""
import dataclasses
import functools

import numpy as np

from reid.evaluation import chunks
from reid.evaluation.distances import Distances, check_dimensions, shown
from reid.evaluation.workers import in_processes


@dataclasses.dataclass
class Neighbours:
    """The k nearest gallery images of each query, nearest first, at equal distances in the order of the gallery.

    rows: int64 [Q, k], rows of the gallery; -1 behind the last image, where there are fewer than k.
    distances: float64 [Q, k], in the metric's own unit; infinite where the row is -1.
    excluded: bool [Q, k], whether the query ignores the image.
    """
    rows: np.ndarray
    distances: np.ndarray
    excluded: np.ndarray


def nearest(query_embeddings, query_fids, gallery_embeddings, gallery_fids, k, metric, excluder=None,
            keep_excluded=False, batch_size=256, workers=1):
    """Find the k nearest gallery images of every query.

    Args:
        query_embeddings, gallery_embeddings: open `Embeddings` or arrays [Q, D], [G, D].
        query_fids, gallery_fids: file ids [Q], [G] for the excluder.
        k: how many, at least 1.
        metric: one of METRICS.
        excluder: what `excluders.load` returns; None: nothing is ignored.
        keep_excluded: also find images that the query ignores, and mark them.
        batch_size: queries at a time.
        workers: number of processes that share the queries.

    Returns: `Neighbours`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    found = nearest_of_kind(Distances, query_embeddings, query_fids, gallery_embeddings, gallery_fids, k, metric, excluder,
                     keep_excluded, batch_size, workers)
    return dataclasses.replace(found, distances=shown(found.distances, metric))


def nearest_of_kind(kind, query_embeddings, query_fids, gallery_embeddings, gallery_fids, k, metric, excluder, keep_excluded,
             batch_size, workers):
    """As `nearest`, for distances of the class `kind`, in the unit that they compare in."""
    check_dimensions(query_embeddings, gallery_embeddings)
    find = functools.partial(_nearest_of_part, kind, query_embeddings, gallery_embeddings, gallery_fids, k, metric,
                             excluder, keep_excluded, batch_size)
    count = len(query_fids)
    parts = [(part.start, query_fids[part])
             for part in chunks.slices(count, min(chunks.QUERIES_AT_ONCE, -(-count // workers)))]
    found = in_processes(find, parts, workers, 'Neighbours')
    return Neighbours(*map(np.concatenate, zip(*found)))


def _nearest_of_part(kind, query_embeddings, gallery, gallery_fids, k, metric, excluder, keep_excluded, batch_size,
                     part):
    """Rows, distances and exclusion [n, k] for a part of the queries: (number of the first one, file ids [n])."""
    start, query_fids = part
    distances = kind(chunks.read(query_embeddings, start, start + len(query_fids)), metric)
    batches = [np.arange(batch.start, batch.stop) for batch in chunks.slices(len(query_fids), batch_size)]
    best = [_no_candidates()] * len(batches)
    for rows, embs in chunks.of_gallery(gallery, 0, len(gallery_fids)):
        chunk = distances.prepare(rows, embs)
        excluded = excluder(gallery_fids[rows]) if excluder else None
        for number, batch in enumerate(batches):
            ignored = excluded(query_fids[batch]) if excluder else np.zeros((len(batch), len(rows)), bool)
            found = _nearest_in_chunk(distances, chunk, batch, ignored, k, keep_excluded)
            best[number] = _first_of_each_query(list(map(np.concatenate, zip(best[number], found))), k)
    queries, rows, exact, ignored = map(np.concatenate, zip(*best))
    place = queries, np.arange(len(queries)) - np.searchsorted(queries, queries)
    shape = len(query_fids), k
    found = np.full(shape, -1), np.full(shape, np.inf), np.zeros(shape, bool)
    for table, values in zip(found, (rows, exact, ignored)):
        table[place] = values
    return found


def _no_candidates():
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool)


def _nearest_in_chunk(distances, chunk, batch, ignored, k, keep_excluded):
    """At least the k nearest images of a chunk [C] for each query of a batch [B], in no order: query, row, exact
    distance, and whether it is ignored: four arrays [n]."""
    approximate, error = distances.approximate(batch, chunk)
    if not keep_excluded:
        approximate[ignored] = np.inf
    last = min(k, len(chunk.rows)) - 1
    # An image among the first k is at most two errors behind the k-th in the order of approximate distances.
    reach = np.partition(approximate, last, axis=1)[:, last] + 2 * error
    reach = np.minimum(reach, np.finfo(np.float32).max).astype(np.float32)
    queries, columns = np.divmod(np.flatnonzero(approximate <= reach[:, None]), len(chunk.rows))
    exact = distances.exact(batch[queries], chunk, columns)
    return batch[queries], chunk.rows[columns], exact, ignored[queries, columns]


def _first_of_each_query(candidates, k):
    """Of candidates (query, row, distance, ignored: arrays [n]) the k nearest of each query, sorted."""
    queries, rows, exact, _ = candidates
    order = np.lexsort((rows, exact, queries))
    queries = queries[order]
    order = order[np.arange(len(order)) - np.searchsorted(queries, queries) < k]
    return [values[order] for values in candidates]

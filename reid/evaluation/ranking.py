"""Exact ranks of true matches in a gallery of any size.

AP and CMC need only the rank of each true match: how many valid gallery images are nearer. So the distances of the
matches come first (they are few), then the gallery passes by in chunks, and for each true match the nearer images
of the chunk are counted. Counts of chunks add up: memory does not grow with the gallery, and processes share the work.

The counts are exact. The error of the approximate distances is bounded: they decide all images but those closer to a
true match's distance than the bound (the match itself is one of them), and only these few are measured exactly. So the
result does not depend on the sizes of chunks and batches, on the linear algebra library or on the number of processes,
and images with the same embedding are tied exactly.
"""
import dataclasses
import functools

import numpy as np

from reid.evaluation import chunks
from reid.evaluation.distances import Distances, check_dimensions
from reid.evaluation.retrieval_metrics import Ranks, ranks_of
from reid.evaluation.workers import in_processes


@dataclasses.dataclass
class Matches:
    """Gallery images of the identities of some queries, sorted by query, distance and gallery row: arrays [M].

    query: int64, number of the query.
    row: int64, row of the gallery image.
    distance: float64, exact.
    """
    query: np.ndarray
    row: np.ndarray
    distance: np.ndarray


def rank(query_embeddings, query_set, gallery_embeddings, gallery_set, excluder, metric, batch_size=256, workers=1,
         keep=None, reranking=None):
    """Rank the gallery for every query.

    Args:
        query_embeddings, gallery_embeddings: open `Embeddings` or arrays [Q, D], [G, D].
        query_set, gallery_set: the `Dataset`s of their rows.
        excluder: what `excluders.load` returns.
        metric: one of METRICS.
        batch_size: queries at a time.
        workers: number of processes that share the gallery.
        keep: bool [G], the part of the gallery that there is; None: all of it.
        reranking: what `k_reciprocal` returns for these embeddings; None: rank by distance.

    Returns: `Ranks`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    check_dimensions(query_embeddings, gallery_embeddings)
    number_of = {}
    query_pids = np.array([number_of.setdefault(pid, len(number_of)) for pid in query_set.pids], np.int64)
    gallery_pids = np.fromiter((number_of.get(pid, -1) for pid in gallery_set.pids), np.int64)
    related = gallery_pids >= 0 if keep is None else (gallery_pids >= 0) & keep
    most_matches = np.bincount(gallery_pids[related], minlength=len(number_of))[query_pids]
    blocks = []
    for block in _query_blocks(most_matches, chunks.queries_at_once(reranking)):
        distances = Distances(chunks.read(query_embeddings, block.start, block.stop), metric)
        if reranking is not None:
            distances = reranking.applied_to(distances, block)
        fids = query_set.fids[block]
        matches = _matches(distances, query_pids[block], gallery_embeddings, gallery_pids, related)
        count = functools.partial(_count_nearer, distances, matches, fids, gallery_embeddings, excluder, batch_size)
        parts = [(part.start, gallery_set.fids[part], None if keep is None else keep[part])
                 for part in chunks.slices(len(gallery_pids), chunks.GALLERY_AT_ONCE)]
        counts = np.zeros((4, len(matches.query)), np.int64)
        junk = 0
        for part_counts, part_junk in in_processes(count, parts, workers, 'Gallery'):
            counts += part_counts
            junk += part_junk
        *counts, ignored = counts
        valid = ignored == 0
        matches = Matches(matches.query[valid], matches.row[valid], matches.distance[valid])
        blocks.append(ranks_of(len(fids), matches, *(count[valid] for count in counts), junk))
    *arrays, junk = zip(*(vars(block).values() for block in blocks))
    return Ranks(*map(np.concatenate, arrays), junk[0])


def _query_blocks(most_matches, at_once):
    """Slices of `at_once` queries or fewer, for each of which the gallery is read once, given upper bounds of their
    matches int64 [Q]."""
    total = np.cumsum(most_matches)
    blocks = []
    start = 0
    while start < len(total):
        before = total[start] - most_matches[start]
        stop = np.searchsorted(total, before + chunks.MATCHES_AT_ONCE, side='right')
        stop = min(max(stop, start + 1), start + at_once)
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def _matches(distances, query_pids, gallery, gallery_pids, related):
    """The `Matches` of all queries among the gallery's `related` images, be they valid or not."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, embs in chunks.of_gallery(gallery, 0, len(gallery_pids), related):
        by_pid = np.argsort(gallery_pids[rows], kind='stable')
        sorted_pids = gallery_pids[rows][by_pid]
        first, last = (np.searchsorted(sorted_pids, query_pids, side) for side in ('left', 'right'))
        queries = np.repeat(np.arange(len(query_pids)), last - first)
        columns = by_pid[chunks.ranges(first, last)]
        found.append((queries, rows[columns], distances.exact(queries, distances.prepare(rows, embs), columns)))
    queries, rows, exact = map(np.concatenate, zip(*found))
    order = np.lexsort((rows, exact, queries))
    return Matches(queries[order], rows[order], exact[order])


def _count_nearer(distances, matches, query_fids, gallery, excluder, batch_size, part):
    """How many valid images of a part of the gallery lie in front of each match.

    Args:
        part: (number of the first image, file ids of all [n], mask [n] of those to look at, or None).

    Returns: int64 [4, M], counts of images that are nearer, as near, and as near but of a smaller row, and whether the
        match is itself an image of this part that its query ignores; and the number of images that are junk.
    """
    start, gallery_fids, keep = part
    counts = np.zeros((4, len(matches.query)), np.int64)
    junk = 0
    queries = np.unique(matches.query)
    for rows, embs in chunks.of_gallery(gallery, start, start + len(gallery_fids), keep):
        excluded = excluder(gallery_fids[rows - start])
        junk += int(np.count_nonzero(getattr(excluded, 'junk', False)))
        chunk = distances.prepare(rows, embs)
        for some in chunks.slices(len(queries), batch_size):
            batch = queries[some]
            of_batch = slice(*np.searchsorted(matches.query, [batch[0], batch[-1] + 1]))
            counts[:, of_batch] += _count_nearer_in_chunk(
                distances, chunk, batch, excluded(query_fids[batch]), np.searchsorted(batch, matches.query[of_batch]),
                matches.row[of_batch], matches.distance[of_batch])
    return counts, junk


def _count_nearer_in_chunk(distances, chunk, batch, ignored, match_query, match_row, match_distance):
    """The counts of `_count_nearer` for a chunk [C] and a batch of queries [B], of which each has a match.

    Args:
        batch: numbers of the queries, int64 [B].
        ignored: bool [B, C].
        match_query, match_row, match_distance: as in `Matches`, but with positions in the batch for the queries.

    Returns: int64 [4, M].
    """
    approximate, error = distances.approximate(batch, chunk)
    # Images between these two bounds may be nearer than the match or not: they are the candidates.
    bounds = match_distance[:, None] + error[match_query, None] * [-1, 1]  # [M, 2]
    first_match = np.searchsorted(match_query, np.arange(len(batch) + 1))

    # Sort each query's images, as far as its furthest match. The column of an image travels with its distance, in bits
    # of the float64 that a float32 leaves empty: that is much faster than to sort indices.
    keys, sizes = [], []
    position = np.empty(bounds.shape, np.int64)
    for query in range(len(batch)):
        of_query = slice(first_match[query], first_match[query + 1])
        in_reach = approximate[query] <= float(bounds[of_query.stop - 1, 1])
        near = np.flatnonzero(in_reach > ignored[query])  # In reach and not ignored.
        keys.append(_with_columns(approximate[query][near], near))
        keys[-1].sort()
        sizes.append(len(near))
        position[of_query] = keys[-1].searchsorted(bounds[of_query])
    keys = np.concatenate(keys)
    first_key = np.cumsum(sizes) - sizes

    # Every candidate once, although the bounds of two matches may overlap.
    low, high = (position + first_key[match_query, None]).T
    begin = np.maximum(low, np.concatenate([[0], high[:-1]]))
    candidates = chunks.ranges(begin, high)
    columns = _columns(keys[candidates])
    queries = np.repeat(match_query, high - begin)
    exact = distances.exact(batch[queries], chunk, columns)

    # In front of a match are the images before its bounds that are no candidates, and the nearer ones of these.
    first_candidate = np.searchsorted(candidates, first_key)[match_query]
    certain = position[:, 0] - (np.searchsorted(candidates, low) - first_candidate)
    level = np.unique(np.concatenate([exact, match_distance]), return_inverse=True)[1]
    stride = len(chunk.rows) + 1
    candidate_place = (queries * len(level) + level[:len(exact)]) * stride + columns
    match_place = (match_query * len(level) + level[len(exact):]) * stride
    candidate_place.sort()
    nearer = np.searchsorted(candidate_place, match_place)
    nearer_or_tied = np.searchsorted(candidate_place, match_place + stride)
    column = np.searchsorted(chunk.rows, match_row)
    before = np.searchsorted(candidate_place, match_place + column)

    match_ignored = np.zeros(len(column), bool)
    here = np.flatnonzero(np.append(chunk.rows, -1)[column] == match_row)
    match_ignored[here] = ignored[match_query[here], column[here]]
    return np.stack([certain + nearer - first_candidate, nearer_or_tied - nearer, before - nearer, match_ignored])


def _with_columns(distances, columns):
    """Float64 [n] that sort as `distances` float32 [n] up to their last bit, and hold `columns` int64 [n] < 2 ** 29."""
    return (distances.astype(np.float64).view(np.int64) | columns).view(np.float64)


def _columns(keys):
    return keys.view(np.int64) & (1 << 29) - 1

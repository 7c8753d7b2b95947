"""Exact ranks of true matches in a gallery of any size.

AP and CMC need only the rank of each true match. A query's matches are few: they are measured first, exactly, and ranked
among themselves. Then the gallery passes by in chunks, and the strangers in front of each match are counted: valid
images of other identities. Counts of chunks add up: memory does not grow with the gallery, and processes share the work.

The counts are exact. The error of the approximate distances is bounded: they decide all strangers but those closer to a
true match's distance than the bound, and only these few are measured exactly. So the result does not depend on the
sizes of chunks and batches, on the linear algebra library or on the number of processes, and images with the same
embedding are tied exactly.
"""
import dataclasses
import functools

import numpy as np

from tripletreid.evaluation import chunks
from tripletreid.evaluation.distances import ROUNDING, Chunk, Distances, PreciseDistances, check_dimensions, similar_in_size
from tripletreid.evaluation.pairs import Counter, Tally
from tripletreid.evaluation.retrieval_metrics import joined, ranks_of
from tripletreid.evaluation.workers import pool


@dataclasses.dataclass
class Matches:
    """Gallery images of the identities of some queries, sorted by query, part, distance and row: arrays [M].

    query: int64, number of the query.
    part: number of the gallery's part that the image belongs to, integers.
    row: int64, row of the gallery image.
    distance: float64, exact.
    """
    query: np.ndarray
    part: np.ndarray
    row: np.ndarray
    distance: np.ndarray

    def __len__(self):
        return len(self.query)

    def take(self, which):
        """The matches of a slice, an index array or a mask."""
        return Matches(self.query[which], self.part[which], self.row[which], self.distance[which])

    def ranked_list(self, part_count):
        """Number of the list that each match is ranked in, int64 [M]: every query has one for each part."""
        return self.query * part_count + self.part


@dataclasses.dataclass
class Counts:
    """What is learnt of M matches from some images of the gallery, which has P parts.

    in_front: int64 [M], strangers in the match's part that are nearer, or as near and of a smaller row.
    up_to: int64 [M], strangers in the match's part that are nearer or as near.
    ignored: bool [M], whether the match is one of these images and its query ignores it.
    junk: int64 [P], images that no query looks at.
    tally: `Tally` of all pairs of a query and a stranger, where one was asked for.
    """
    in_front: np.ndarray
    up_to: np.ndarray
    ignored: np.ndarray
    junk: np.ndarray
    tally: Tally | None = None

    @classmethod
    def zero(cls, matches, parts):
        return cls(np.zeros(matches, np.int64), np.zeros(matches, np.int64), np.zeros(matches, bool),
                   np.zeros(parts, np.int64))

    def add(self, other):
        """Add the counts from other images."""
        self.in_front += other.in_front
        self.up_to += other.up_to
        self.ignored |= other.ignored
        self.junk += other.junk


def rank(query_embeddings, query_set, gallery_embeddings, gallery_set, excluder, metric, batch_size=256, workers=1,
         reranking=None, census=None):
    """Rank the gallery for every query.

    Args:
        query_embeddings, gallery_embeddings: open `Embeddings` or arrays [Q, D], [G, D].
        query_set, gallery_set: the `Dataset`s of their rows.
        excluder: what `excluders.load` returns.
        metric: one of METRICS.
        batch_size: queries at a time.
        workers: who shares the gallery, as `workers.pool` takes it.
        reranking: what `k_reciprocal` returns for these embeddings; None: rank by distance.
        census: a `Census`, to which all pairs are told. Re-ranked distances it does not understand.

    Returns: `Ranks`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    one_part = np.zeros(len(gallery_set), np.int8)
    return rank_parts(query_embeddings, query_set, gallery_embeddings, gallery_set, excluder, metric, one_part, batch_size,
                      workers, reranking, census)[0]


def rank_parts(query_embeddings, query_set, gallery_embeddings, gallery_set, excluder, metric, parts, batch_size=256,
               workers=1, reranking=None, census=None):
    """Rank every part of the gallery for every query, as if it were all of the gallery, in one pass.

    Args:
        parts: number of each gallery image's part, integers [G] from 0 on.
        The others are those of `rank`.

    Returns: a list of `Ranks`, one for each part.

    Raises: as `rank`.
    """
    check_dimensions(query_embeddings, gallery_embeddings)
    part_count = int(parts.max(initial=0)) + 1
    query_pids, gallery_pids = numbered(query_set, gallery_set)
    blocks = []  # Of each, the `Ranks` of all parts.
    with pool(workers) as share:
        for block in query_blocks(query_pids, gallery_pids, chunks.queries_at_once(reranking)):
            kind = Distances if census is None else PreciseDistances
            distances = kind(chunks.read(query_embeddings, block.start, block.stop), metric)
            if reranking is not None:
                distances = reranking.applied_to(distances, block)
            matches = matches_of(distances, query_pids[block], gallery_embeddings, gallery_pids, parts, part_count)
            count = functools.partial(_count, distances, matches, query_set.fids[block], gallery_embeddings, excluder,
                                      part_count, batch_size, census and census.plan, block.start)
            tasks = [_Task(some.start, gallery_set.fids[some], parts[some])
                     for some in chunks.tasks_of_gallery(len(parts), share.count)]
            counts = Counts.zero(len(matches), part_count)
            for counts_of_task in share(count, tasks, 'Gallery'):
                counts.add(counts_of_task)
                if census is not None:
                    census.tally.add(counts_of_task.tally)
            if census is not None:
                valid = matches.take(~counts.ignored)
                census.add_matches(block.start + valid.query, valid.distance)
            blocks.append(_ranks_of_parts(len(query_pids[block]), matches, counts))
    return [joined(blocks_of_part) for blocks_of_part in zip(*blocks)]


def numbered(query_set, gallery_set):
    """The identities of queries and gallery as numbers, int32 [Q] and [G]: -1 where no query has it."""
    number_of = {}
    query_pids = np.array([number_of.setdefault(pid, len(number_of)) for pid in query_set.pids], np.int32)
    return query_pids, np.fromiter((number_of.get(pid, -1) for pid in gallery_set.pids), np.int32, len(gallery_set))


def _ranks_of_parts(query_count, matches, counts):
    """A list of `Ranks`, one for each part, given the `Counts` of the whole gallery."""
    valid = ~counts.ignored
    part_count = len(counts.junk)
    ranks = ranks_of(query_count * part_count, matches.ranked_list(part_count)[valid], matches.distance[valid],
                     counts.in_front[valid], counts.up_to[valid], junk=0)
    return [dataclasses.replace(ranks.take(slice(part, None, part_count)), junk=int(counts.junk[part]))
            for part in range(part_count)]


def query_blocks(query_pids, gallery_pids, at_once):
    """Slices of `at_once` queries or fewer, for each of which the gallery is read once, given `numbered` identities."""
    most_matches = np.bincount(gallery_pids[gallery_pids >= 0], minlength=query_pids.max() + 1)[query_pids]
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


def matches_of(distances, query_pids, gallery, gallery_pids, parts, part_count):
    """The `Matches` of all queries in the gallery, be they valid or not."""
    found = [Matches(np.zeros(0, np.int64), parts[:0], np.zeros(0, np.int64), np.zeros(0))]
    wanted = np.isin(gallery_pids, query_pids)
    for rows, embs in chunks.of_gallery(gallery, 0, len(gallery_pids), wanted):
        by_pid = np.argsort(gallery_pids[rows], kind='stable')
        sorted_pids = gallery_pids[rows][by_pid]
        first, last = (np.searchsorted(sorted_pids, query_pids, side) for side in ('left', 'right'))
        queries = np.repeat(np.arange(len(query_pids)), last - first)
        columns = by_pid[chunks.ranges(first, last)]
        exact = distances.exact(queries, distances.prepare(rows, embs), columns)
        found.append(Matches(queries, parts[rows[columns]], rows[columns], exact))
    matches = Matches(**{field.name: np.concatenate([getattr(some, field.name) for some in found])
                         for field in dataclasses.fields(Matches)})
    # Stable sorts: at equal distances the rows stay in their order. One list at a time is much faster than all at once.
    ranked_list = matches.ranked_list(part_count)
    order = np.argsort(ranked_list, kind='stable')
    starts = np.flatnonzero(np.diff(ranked_list[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)]):
        some = order[start:stop]
        order[start:stop] = some[np.argsort(matches.distance[some], kind='stable')]
    return matches.take(order)


# --- Strangers in front of the matches --------------------------------------------------------------------------------

@dataclasses.dataclass
class _Task:
    """Successive images of the gallery.

    start: row of the first one.
    fids, parts: their file ids and parts, [n].
    """
    start: int
    fids: np.ndarray
    parts: np.ndarray


@dataclasses.dataclass
class _Group:
    """Images of a chunk that are compared at once: of one part and similar in size.

    part: number of the part.
    columns: where they are, when the chunk is ordered by groups.
    chunk: a `Chunk` of them alone.
    """
    part: int
    columns: slice
    chunk: Chunk


@dataclasses.dataclass
class _Standing:
    """How many of some images stand in front of each match: `in_front` and `up_to` as in `Counts`, int64 [M]."""
    in_front: np.ndarray
    up_to: np.ndarray


def _count(distances, matches, query_fids, gallery, excluder, part_count, batch_size, plan, first_query, task):
    """The `Counts` of all matches from the images of a task; with a `Plan` also the tally."""
    counts = Counts.zero(len(matches), part_count)
    counter = plan and Counter(distances, plan, first_query)
    queries = np.arange(len(query_fids)) if plan else _different(matches.query)
    for rows, embs in chunks.of_gallery(gallery, task.start, task.start + len(task.fids)):
        of_chunk = slice(rows[0] - task.start, rows[-1] + 1 - task.start)
        order, groups = _grouped(distances.prepare(rows, embs), task.parts[of_chunk])
        column_of = np.argsort(order)
        excluded = excluder(task.fids[of_chunk][order])
        junk = getattr(excluded, 'junk', np.zeros(len(rows), bool))
        counts.junk += np.bincount(task.parts[of_chunk][order][junk], minlength=part_count)
        for some in chunks.slices(len(queries), batch_size):
            batch = queries[some]
            of_batch = slice(*np.searchsorted(matches.query, [batch[0], batch[-1] + 1]))
            # A match is no stranger to its query, be it ignored or not.
            passed_over = excluded(query_fids[batch])
            query, place = np.searchsorted(batch, matches.query[of_batch]), matches.row[of_batch] - rows[0]
            here = np.flatnonzero((place >= 0) & (place < len(rows)))
            pairs = query[here], column_of[place[here]]
            counts.ignored[of_batch.start + here] = passed_over[pairs]
            passed_over[pairs] = True
            for group in groups:
                chosen = of_batch.start + np.flatnonzero(matches.part[of_batch] == group.part)
                asking = _different(matches.query[chosen])
                of_group = passed_over[:, group.columns]
                if counter:
                    approximate, error = counter.count(batch, group.chunk, of_group)
                    # In front of the furthest match they are rounded by this much.
                    error = error + 2 * ROUNDING * (matches.distance[of_batch].max(initial=0) + error)
                if len(asking) < len(batch):
                    of_asking = np.searchsorted(batch, asking)
                    of_group = of_group[of_asking]
                    if counter:
                        approximate, error = approximate[of_asking], error[of_asking]
                if not counter:
                    approximate, error = distances.approximate(asking, group.chunk)
                standing = _count_in_group(distances, group.chunk, matches.take(chosen), asking, of_group, approximate,
                                           error)
                counts.in_front[chosen] += standing.in_front
                counts.up_to[chosen] += standing.up_to
    counts.tally = counter and counter.result()
    return counts


def _different(numbers):
    """The different ones of ascending numbers >= 0."""
    return numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]


def _grouped(chunk, parts):
    """Group the images of a chunk, given the part of each [C].

    Returns: the order of the images, group by group, int64 [C]; and the `_Group`s.
    """
    order, keys, start = [], [], 0
    for part in np.unique(parts):
        of_part = np.flatnonzero(parts == part)
        for some in similar_in_size(chunk.sizes[of_part]):
            order.append(of_part[some])
            keys.append((part, slice(start, start + len(some))))
            start += len(some)
    order = np.concatenate(order)
    if len(keys) > 1:
        chunk = chunk.take(order)
    return order, [_Group(part, columns, chunk.take(columns)) for part, columns in keys]


def _count_in_group(distances, chunk, matches, batch, passed_over, approximate, error):
    """The `_Standing` of some matches among the images of a chunk [C].

    Args:
        matches: `Matches` [M] of one part.
        batch: numbers of their queries, each once, int64 [B].
        passed_over: bool [B, C], images that are not counted.
        approximate, error: what `Distances.approximate` returns for them.
    """
    query = np.searchsorted(batch, matches.query)  # Here and below: the position in the batch.
    # Images between these two bounds may be nearer than the match or not: they are the candidates.
    bounds = matches.distance[:, None] + error[query, None] * [-1, 1]  # [M, 2]

    # Sort each query's images, as far as its furthest match, and find the bounds among them.
    first_match = np.searchsorted(query, np.arange(len(batch) + 1))
    keys, first_key = [], [0]
    position = np.empty(bounds.shape, np.int64)
    for q in range(len(batch)):
        of_query = slice(first_match[q], first_match[q + 1])
        in_reach = approximate[q] <= float(bounds[of_query.stop - 1, 1])
        near = np.flatnonzero(in_reach > passed_over[q])  # In reach and not passed over.
        keys.append(_with_columns(approximate[q][near], near))
        keys[-1].sort()
        first_key.append(first_key[-1] + len(near))
        position[of_query] = keys[-1].searchsorted(bounds[of_query])

    # Where no image is between the bounds, the approximate distances have decided.
    before_bounds, before_end = position.T
    standing = _Standing(before_bounds, before_bounds.copy())
    undecided = np.flatnonzero(before_bounds < before_end)
    if len(undecided):
        keys = np.concatenate(keys)
        between = position[undecided] + np.array(first_key)[query[undecided], None]
        exact = _count_candidates(distances, chunk, matches.take(undecided), batch, keys, between)
        standing.in_front[undecided] += exact.in_front
        standing.up_to[undecided] += exact.up_to
    return standing


def _count_candidates(distances, chunk, matches, batch, keys, between):
    """The `_Standing` of undecided matches [M] by exact distances, less the images before the first bound.

    It is negative where candidates of a nearer match are before the bounds, but turn out to be further.

    Args:
        keys: float64 [n], of the images of all queries, query by query, sorted: `_with_columns`.
        between: int64 [M, 2], where the bounds of each match are among the keys.
        The others are those of `_count_in_group`.
    """
    # Measure every candidate once, although the bounds of two matches may overlap.
    start, stop = between.T
    fresh = np.maximum(start, np.append(0, stop[:-1]))
    candidates = chunks.ranges(fresh, stop)
    column = _columns(keys[candidates])
    match_query = np.searchsorted(batch, matches.query)
    query = np.repeat(match_query, stop - fresh)
    exact = distances.exact(batch[query], chunk, column)

    # Sort them by query, distance and column, all in one integer: much faster than by three keys.
    levels, level = np.unique(np.concatenate([exact, matches.distance]), return_inverse=True)
    level, match_level = np.split(level, [len(exact)])
    behind_all = len(chunk.rows)

    def place(query, level, column):
        return (query * len(levels) + level) * (behind_all + 1) + column

    places = np.sort(place(query, level, column))
    match_column = np.searchsorted(chunk.rows, matches.row)  # Or where it would be: the match may be in another chunk.
    in_front = np.searchsorted(places, place(match_query, match_level, match_column))
    up_to = np.searchsorted(places, place(match_query, match_level, behind_all))
    # Both count the candidates of all queries before, and so does this.
    before_bounds = np.searchsorted(candidates, start)
    return _Standing(in_front - before_bounds, up_to - before_bounds)


def _with_columns(distances, columns):
    """Float64 [n] that sort as `distances` float32 [n] up to their last bit, and hold `columns` int64 [n] < 2 ** 29.

    The column of an image travels with its distance, in bits of the float64 that a float32 leaves empty: that is much
    faster than to sort indices.
    """
    return (distances.astype(np.float64).view(np.int64) | columns).view(np.float64)


def _columns(keys):
    return keys.view(np.int64) & (1 << 29) - 1

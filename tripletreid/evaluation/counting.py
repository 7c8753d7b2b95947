"""Count the non-matches ranked above each true match: valid images of other identities.

The counts are exact. The error of the approximate distances is bounded: they decide all non-matches except those closer
to a true match's distance than the bound, and only these few are measured exactly. So the result does not depend on the
sizes of chunks and batches, on the linear algebra library or on the number of processes, and images with the same
embedding are tied exactly.
"""
import dataclasses

import numpy as np

from tripletreid.evaluation import chunks
from tripletreid.evaluation.distances import ROUNDING, Chunk, similar_in_size
from tripletreid.evaluation.pairs import Counter, Tally


@dataclasses.dataclass
class Matches:
    """Gallery images of the queries' identities, sorted by query, part, distance and row: arrays [M].

    query: int64, number of the query.
    part: integers, number of the gallery's part that contains the image.
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
        """Return the matches of a slice, an index array or a mask."""
        return Matches(self.query[which], self.part[which], self.row[which], self.distance[which])

    def ranked_list(self, part_count):
        """Return the number of each match's ranked list, int64 [M]: every query has one list per part."""
        return self.query * part_count + self.part


@dataclasses.dataclass
class Counts:
    """Counts of M matches from some images of the gallery, which has P parts.

    in_front: int64 [M], non-matches in the match's part that are nearer, or equally near with a smaller row.
    up_to: int64 [M], non-matches in the match's part that are nearer or equally near.
    ignored: bool [M], whether the match is one of these images and its query ignores it.
    others: int64 [B, P], valid non-matches of each of the B queries, if it has matches.
    junk: int64 [P], images that every query ignores.
    tally: `Tally` of all pairs of a query and a non-match, if requested.
    """
    in_front: np.ndarray
    up_to: np.ndarray
    ignored: np.ndarray
    others: np.ndarray
    junk: np.ndarray
    tally: Tally | None = None

    @classmethod
    def zero(cls, matches, queries, parts):
        """Return counts of no images."""
        return cls(np.zeros(matches, np.int64), np.zeros(matches, np.int64), np.zeros(matches, bool),
                   np.zeros((queries, parts), np.int64), np.zeros(parts, np.int64))

    def add(self, other):
        """Add the counts from other images."""
        self.in_front += other.in_front
        self.up_to += other.up_to
        self.ignored |= other.ignored
        self.others += other.others
        self.junk += other.junk


@dataclasses.dataclass
class Search:
    """A block of queries that searches the gallery: all that a task needs besides its images.

    distances: `Distances` of the B queries, or re-ranked ones.
    matches: their `Matches` in the whole gallery.
    query_fids: file ids [B].
    gallery: open `Embeddings` or an array [G, D].
    excluder, batch_size: as in `Retrieval`.
    part_count: number of the gallery's parts.
    plan: `Plan` of a census, or None.
    first_query: number of the first of these queries among all.
    """
    distances: object
    matches: Matches
    query_fids: np.ndarray
    gallery: object
    excluder: object
    part_count: int
    batch_size: int
    plan: object
    first_query: int


@dataclasses.dataclass
class Task:
    """Successive images of the gallery.

    start: row of the first one.
    fids, parts: their file ids and parts, [n].
    """
    start: int
    fids: np.ndarray
    parts: np.ndarray


@dataclasses.dataclass
class _Group:
    """Images of a chunk that are compared together: of one part and similar in size.

    part: number of the part.
    columns: their slice of the chunk that is ordered by groups.
    chunk: the `Chunk` of only these images.
    """
    part: int
    columns: slice
    chunk: Chunk


@dataclasses.dataclass
class _Standing:
    """Counts of valid non-matches ranked above each match: `in_front` and `up_to` as in `Counts`, int64 [M]."""
    in_front: np.ndarray
    up_to: np.ndarray


def count(search, task):
    """Return the `Counts` of all matches of a `Search` from the images of a task; with a `Plan` also the tally."""
    distances, matches = search.distances, search.matches
    counts = Counts.zero(len(matches), len(search.query_fids), search.part_count)
    counter = search.plan and Counter(distances, search.plan, search.first_query)
    queries = np.arange(len(search.query_fids)) if counter else _different(matches.query)
    for rows, embs in chunks.gallery_chunks(search.gallery, task.start, task.start + len(task.fids)):
        chunk_slice = slice(rows[0] - task.start, rows[-1] + 1 - task.start)
        order, groups = _grouped(distances.prepare(rows, embs), task.parts[chunk_slice])
        column_of = np.argsort(order)
        excluded = search.excluder(task.fids[chunk_slice][order])
        junk = getattr(excluded, 'junk', np.zeros(len(rows), bool))
        counts.junk += np.bincount(task.parts[chunk_slice][order][junk], minlength=search.part_count)
        for some in chunks.slices(len(queries), search.batch_size):
            batch = queries[some]
            batch_matches = slice(*np.searchsorted(matches.query, [batch[0], batch[-1] + 1]))
            # Neither ignored images nor matches, ignored or not, count as non-matches.
            skipped = excluded(search.query_fids[batch])
            query, place = np.searchsorted(batch, matches.query[batch_matches]), matches.row[batch_matches] - rows[0]
            here = np.flatnonzero((place >= 0) & (place < len(rows)))
            pairs = query[here], column_of[place[here]]
            counts.ignored[batch_matches.start + here] = skipped[pairs]
            skipped[pairs] = True
            for group in groups:
                chosen = batch_matches.start + np.flatnonzero(matches.part[batch_matches] == group.part)
                group_skipped = skipped[:, group.columns]
                # Row by row, because NumPy adds integers up when it is asked for all rows at once.
                ignored = np.array(list(map(np.count_nonzero, group_skipped)))
                counts.others[batch, group.part] += group_skipped.shape[1] - ignored
                standing = _count_group(distances, counter, matches.take(chosen), batch, group.chunk,
                                        group_skipped, matches.distance[batch_matches].max(initial=0))
                counts.in_front[chosen] += standing.in_front
                counts.up_to[chosen] += standing.up_to
    counts.tally = counter and counter.result()
    return counts


def _count_group(distances, counter, matches, batch, chunk, skipped, furthest):
    """Return the `_Standing` of matches among the images of a group, and let the counter count all their pairs.

    Args:
        distances: as in `Search`.
        counter: a `Counter`, or None.
        matches: `Matches` in the group's part of some of the queries in the batch.
        batch: numbers of queries, each once, int64 [B].
        chunk: `Chunk` of the group's images [C].
        skipped: bool [B, C], pairs that are not counted.
        furthest: distance of the furthest match of the batch.
    """
    with_matches = _different(matches.query)
    if counter:
        approximate, error = counter.count(batch, chunk, skipped)
        # Rounding to float32 adds at most this much to the error of distances up to the furthest match.
        error = error + 2 * ROUNDING * (furthest + error)
    if len(with_matches) < len(batch):
        chosen = np.searchsorted(batch, with_matches)
        skipped = skipped[chosen]
        if counter:
            approximate, error = approximate[chosen], error[chosen]
    if not counter:
        approximate, error = distances.approximate(with_matches, chunk)
    return _count_in_group(distances, chunk, matches, with_matches, skipped, approximate, error)


def _different(numbers):
    """Return ascending numbers >= 0 without repetition."""
    return numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]


def _grouped(chunk, parts):
    """Group the images of a chunk by part and size, given the part of each [C].

    Returns: the order of the images, group by group, int64 [C], and the `_Group`s.
    """
    order, keys, start = [], [], 0
    for part in np.unique(parts):
        part_images = np.flatnonzero(parts == part)
        for some in similar_in_size(chunk.sizes[part_images]):
            order.append(part_images[some])
            keys.append((part, slice(start, start + len(some))))
            start += len(some)
    order = np.concatenate(order)
    if len(keys) > 1:
        chunk = chunk.take(order)
    return order, [_Group(part, columns, chunk.take(columns)) for part, columns in keys]


def _count_in_group(distances, chunk, matches, batch, skipped, approximate, error):
    """Return the `_Standing` of matches among the images of a chunk [C].

    Args:
        distances: as in `Search`.
        chunk: `Chunk`.
        matches: `Matches` [M] of one part.
        batch: numbers of their queries, each once, int64 [B].
        skipped: bool [B, C], images that are not counted.
        approximate, error: approximate distances and their error, as `Distances.approximate` returns them.
    """
    query = np.searchsorted(batch, matches.query)  # Positions in the batch.
    # The approximate distance does not decide about images between these two bounds, the candidates.
    bounds = matches.distance[:, None] + error[query, None] * [-1, 1]  # [M, 2]

    # Sort each query's images up to its furthest match, and find the bounds among them.
    first_match = np.searchsorted(query, np.arange(len(batch) + 1))
    keys, first_key = [], [0]
    position = np.empty(bounds.shape, np.int64)
    for q in range(len(batch)):
        query_matches = slice(first_match[q], first_match[q + 1])
        in_reach = approximate[q] <= float(bounds[query_matches.stop - 1, 1])
        near = (in_reach > skipped[q]).nonzero()[0]  # In reach and not skipped.
        keys.append(_with_columns(approximate[q][near], near))
        keys[-1].sort()
        first_key.append(first_key[-1] + len(near))
        position[query_matches] = keys[-1].searchsorted(bounds[query_matches])

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
    """Return the `_Standing` of undecided matches [M] by exact distances, minus the images before the first bound.

    It is negative where candidates of a nearer match are before the bounds, but turn out to be further.

    Args:
        distances, chunk, matches, batch: as for `_count_in_group`.
        keys: float64 [n], `_with_columns` of the images of all queries, query by query, sorted.
        between: int64 [M, 2], positions of the bounds of each match among the keys.
    """
    # Measure every candidate once, although the bounds of two matches may overlap.
    start, stop = between.T
    fresh = np.maximum(start, np.append(0, stop[:-1]))
    candidates = chunks.ranges(fresh, stop)
    column = _columns(keys[candidates])
    match_query = np.searchsorted(batch, matches.query)
    query = np.repeat(match_query, stop - fresh)
    exact = distances.exact(batch[query], chunk, column)

    # Sort them by query, distance and column in one integer, which is much faster than by three keys.
    levels, level = np.unique(np.concatenate([exact, matches.distance]), return_inverse=True)
    level, match_level = np.split(level, [len(exact)])
    no_column = len(chunk.rows)

    def place(query, level, column):
        return (query * len(levels) + level) * (no_column + 1) + column

    places = np.sort(place(query, level, column))
    match_column = np.searchsorted(chunk.rows, matches.row)  # Its insertion point where the match is in another chunk.
    in_front = np.searchsorted(places, place(match_query, match_level, match_column))
    up_to = np.searchsorted(places, place(match_query, match_level, no_column))
    # Both count the candidates of all earlier queries too, and so does this.
    before_bounds = np.searchsorted(candidates, start)
    return _Standing(in_front - before_bounds, up_to - before_bounds)


def _with_columns(distances, columns):
    """Return float64 [n] that sort as `distances` float32 [n] to their last bit and hold `columns` int64 [n] < 2 ** 29.

    The column of an image is stored in the bits of the float64 that a float32 leaves empty, because that is much faster
    than sorting indices.
    """
    return (distances.astype(np.float64).view(np.int64) | columns).view(np.float64)


def _columns(keys):
    """Return the columns in keys of `_with_columns`, int64 [n]."""
    return keys.view(np.int64) & (1 << 29) - 1

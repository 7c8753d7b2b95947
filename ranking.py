"""Exact ranks of true matches in a gallery of any size, and what follows from them: AP, CMC, mINP, nearest neighbours.

AP and CMC need only the rank of each true match: how many valid gallery images are nearer. So the distances of the
matches come first (they are few), then the gallery passes by in chunks, and for each true match the nearer images
of the chunk are counted. Counts of chunks add up: memory does not grow with the gallery, and processes share the work.

The counts are exact. The distance of two images is defined as a sum over the differences of their coordinates in
float64: a function of the two rows alone. A float32 matrix product is much faster, but gives a pair of rows other last
bits in chunks of other shapes. Its error is bounded, though: it decides all images but those closer to a true match's
distance than the bound (the match itself is one of them), and only these few are measured exactly. So the result does
not depend on the sizes of chunks and batches, on the linear algebra library or on the number of processes, and
images with the same embedding are tied exactly.
"""
import dataclasses
import functools

import numpy as np

from errors import InputError

METRICS = ('euclidean', 'sqeuclidean', 'cityblock', 'cosine')

GALLERY_AT_ONCE = 16384  # Images a chunk at most; with a query batch of 256 their distances take 16 MB.
CHUNK_NUMBERS = 1 << 22  # In the embeddings of a chunk, at most: another 16 MB.
QUERIES_AT_ONCE = 4096  # For more queries than these, or
MATCHES_AT_ONCE = 1 << 20  # more true matches, the gallery is read once more.
CACHED_NUMBERS = 1 << 16  # Differences at once: of as many the processor's cache holds all intermediate values.
ROUNDING = 2.0 ** -24  # Largest relative error of one float32 operation,
SMALLEST = 2.0 ** -120  # but where numbers are as small as this.
LARGEST = 2.0 ** 120  # A float32 sum of squares overflows soon behind this.


# --- Reading ----------------------------------------------------------------------------------------------------------

def _read(source, start, stop):
    """Embeddings [start, stop) of an open `Embeddings` or an array, float32 [stop - start, D]."""
    if hasattr(source, 'rows'):
        return source.rows(start, stop)
    return np.asarray(source[start:stop], dtype=np.float32)


def _chunks(gallery, start, stop, keep=None):
    """Rows int64 [C] and embeddings [C, D] of the gallery from `start` to `stop`, a chunk at a time.

    With a mask `keep` [stop - start] only the images that it names.
    """
    images = min(GALLERY_AT_ONCE, max(1, CHUNK_NUMBERS // gallery.shape[1]))
    for first in range(start, stop, images):
        last = min(first + images, stop)
        if keep is None:
            yield np.arange(first, last), _read(gallery, first, last)
            continue
        kept = np.flatnonzero(keep[first - start:last - start])
        if len(kept):
            yield first + kept, _read(gallery, first, last)[kept]


def _batches(count, batch_size):
    """Slices of `batch_size` that cover `count`."""
    return [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def _ranges(starts, stops):
    """The numbers of all the ranges [start, stop), one range behind the other: int64 [sum of their lengths]."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(lengths.sum())


# --- Distances --------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Chunk:
    """Some images of the gallery, made ready by `Distances.prepare`.

    rows: their rows, int64 [C], ascending.
    embs: float32 [C, D].
    centred: float32 [C, D], what the approximate distances are computed from.
    sizes: float32 [C], squared norms of `centred`; for cityblock its sums of absolute values.
    """
    rows: np.ndarray
    embs: np.ndarray
    centred: np.ndarray
    sizes: np.ndarray


class Distances:
    """Distances from some queries to chunks of a gallery: all of them approximately, or few of them exactly.

    They are in the unit that images are compared in, which spares the root: the squared distance for `euclidean` and
    `sqeuclidean`, that of the embeddings scaled to length one for `cosine` (twice the cosine distance).
    """

    def __init__(self, queries, metric):
        """Takes embeddings float32 [Q, D] and one of METRICS."""
        self.queries = queries
        self.metric = metric
        # Norms enter the error bound: what all embeddings have in common is better taken away first.
        self.centre = np.zeros(queries.shape[1], np.float32)
        if metric != 'cosine':
            self.centre = queries.mean(axis=0, dtype=np.float64).astype(np.float32)
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
        if self.metric == 'cityblock':
            approximate = _cityblock(self.centred[batch], chunk.centred)
            largest = self.sizes[batch].astype(np.float64) + chunk.sizes.max()
        else:
            approximate = np.matmul(-2 * self.centred[batch], chunk.centred.T)
            approximate += chunk.sizes
            approximate += self.sizes[batch, None]
            largest = (np.sqrt(self.sizes[batch], dtype=np.float64) + np.sqrt(chunk.sizes.max())) ** 2
        # A sum of D products is off by at most D roundings of the sum of their absolute values, in whatever order it
        # is computed (Higham 2002, section 3.1). The 16 stand for centring, adding the sizes, and comparing.
        dim = self.queries.shape[1]
        return approximate, 1.01 * (dim + 16) * ROUNDING * largest + dim * SMALLEST

    def exact(self, queries, chunk, columns):
        """Distances of pairs, float64 [n], for numbers of queries [n] and of images in the chunk [n]."""
        exact = np.empty(len(queries))
        for some in _batches(len(queries), max(1, CACHED_NUMBERS // self.queries.shape[1])):
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
            embs = self._float64(embs).astype(np.float32)
        centred = embs - self.centre
        if self.metric == 'cityblock':
            sizes = np.abs(centred).sum(axis=1)
        else:
            sizes = np.einsum('nd,nd->n', centred, centred)
        if not sizes.max(initial=0) < LARGEST:
            raise InputError(f'There are numbers as large as {np.abs(embs).max():.3g} in the embeddings of the {whose}: '
                             f'too large to be compared.')
        return centred, sizes


def _cityblock(queries, gallery):
    """Sums of absolute differences, float32 [B, C], for [B, D] and [C, D]."""
    dim = queries.shape[1]
    sums = np.empty((len(queries), len(gallery)), np.float32)
    ones = np.ones(dim, np.float32)
    for columns in _batches(len(gallery), max(1, CACHED_NUMBERS // dim)):
        part = gallery[columns]
        differences = np.empty_like(part)
        for query, row in zip(queries, sums):
            np.subtract(part, query, out=differences)
            np.abs(differences, out=differences)
            np.dot(differences, ones, out=row[columns])
    return sums


# --- Ranks of true matches --------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Ranks:
    """What evaluation needs to know of each query: arrays [Q], and one number about the gallery.

    matches: int64, valid gallery images of the query's identity.
    ap_sklearn: float64, average precision as scikit-learn (since 0.19) defines it: the mean over matches of the
        precision at the match's distance, where images at equal distances are found together. NaN without a match.
    ap_market1501: float64, average precision of the Market-1501 benchmark: the area under the precision-recall curve
        by trapezoids, images at equal distances in the order of the gallery. NaN without a match.
    first_match_rank, last_match_rank: int64, ranks of the nearest and the furthest match, counted from 1 among the
        valid images, at equal distances in the order of the gallery. 0 without a match.
    junk: number of gallery images that no query looks at.
    """
    matches: np.ndarray
    ap_sklearn: np.ndarray
    ap_market1501: np.ndarray
    first_match_rank: np.ndarray
    last_match_rank: np.ndarray
    junk: int

    @property
    def matched(self):
        """Which queries have a match, bool [Q]; the others count in no score."""
        return self.matches > 0

    @property
    def inp(self):
        """Inverse negative penalty, float64 [Q] (Ye et al. 2021, section 3.2): matches per image up to the last."""
        return self.matches / np.where(self.matched, self.last_match_rank, np.nan)

    def cmc(self, length):
        """Share of the matched queries whose first match has rank 1, at most 2, …, at most `length`: float64."""
        at_rank = np.bincount(self.first_match_rank[self.matched] - 1, minlength=length)
        return np.cumsum(at_rank[:length]) / self.matched.sum()


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
    _check_dimensions(query_embeddings, gallery_embeddings)
    number_of = {}
    query_pids = np.array([number_of.setdefault(pid, len(number_of)) for pid in query_set.pids], np.int64)
    gallery_pids = np.fromiter((number_of.get(pid, -1) for pid in gallery_set.pids), np.int64)
    related = gallery_pids >= 0 if keep is None else (gallery_pids >= 0) & keep
    most_matches = np.bincount(gallery_pids[related], minlength=len(number_of))[query_pids]
    blocks = []
    for block in _query_blocks(most_matches):
        distances = Distances(_read(query_embeddings, block.start, block.stop), metric)
        if reranking is not None:
            distances = reranking.applied_to(distances, block)
        fids = query_set.fids[block]
        matches = _matches(distances, query_pids[block], gallery_embeddings, gallery_pids, related)
        count = functools.partial(_count_nearer, distances, matches, fids, gallery_embeddings, excluder, batch_size)
        parts = [(part.start, gallery_set.fids[part], None if keep is None else keep[part])
                 for part in _batches(len(gallery_pids), GALLERY_AT_ONCE)]
        counts = np.zeros((4, len(matches.query)), np.int64)
        junk = 0
        for part_counts, part_junk in _in_processes(count, parts, workers, 'Gallery'):
            counts += part_counts
            junk += part_junk
        *counts, ignored = counts
        valid = ignored == 0
        matches = Matches(matches.query[valid], matches.row[valid], matches.distance[valid])
        blocks.append(_ranks(len(fids), matches, *(count[valid] for count in counts), junk))
    *arrays, junk = zip(*(vars(block).values() for block in blocks))
    return Ranks(*map(np.concatenate, arrays), junk[0])


def _check_dimensions(query_embeddings, gallery_embeddings):
    query_dim, gallery_dim = query_embeddings.shape[1], gallery_embeddings.shape[1]
    if query_dim != gallery_dim or query_dim == 0:
        raise InputError(f'The queries have {query_dim} dimensions and the gallery has {gallery_dim}: embed both with '
                         f'the same model.')


def _query_blocks(most_matches):
    """Slices of queries, for each of which the gallery is read once, given upper bounds of their matches int64 [Q]."""
    total = np.cumsum(most_matches)
    blocks = []
    start = 0
    while start < len(total):
        before = total[start] - most_matches[start]
        stop = np.searchsorted(total, before + MATCHES_AT_ONCE, side='right')
        stop = min(max(stop, start + 1), start + QUERIES_AT_ONCE)
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def _matches(distances, query_pids, gallery, gallery_pids, related):
    """The `Matches` of all queries among the gallery's `related` images, be they valid or not."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for rows, embs in _chunks(gallery, 0, len(gallery_pids), related):
        by_pid = np.argsort(gallery_pids[rows], kind='stable')
        sorted_pids = gallery_pids[rows][by_pid]
        first, last = (np.searchsorted(sorted_pids, query_pids, side) for side in ('left', 'right'))
        queries = np.repeat(np.arange(len(query_pids)), last - first)
        columns = by_pid[_ranges(first, last)]
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
    for rows, embs in _chunks(gallery, start, start + len(gallery_fids), keep):
        excluded = excluder(gallery_fids[rows - start])
        junk += int(np.count_nonzero(getattr(excluded, 'junk', False)))
        chunk = distances.prepare(rows, embs)
        for some in _batches(len(queries), batch_size):
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
    candidates = _ranges(begin, high)
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


def _ranks(query_count, matches, nearer, tied, tied_before, junk):
    """The `Ranks` of queries, given the counts [M] of images in front of each match."""
    query = matches.query
    count = np.bincount(query, minlength=query_count)
    first = np.cumsum(count) - count
    found = np.arange(len(query)) - first[query] + 1  # The k of the k-th match.

    # Scikit-learn: all images of one distance are found at once.
    last_of_tie = np.ones(len(query), bool)
    last_of_tie[:-1] = (query[1:] != query[:-1]) | (matches.distance[1:] != matches.distance[:-1])
    ends = np.flatnonzero(last_of_tie)
    found_with_ties = found[ends[np.searchsorted(ends, np.arange(len(query)))]]
    precision = found_with_ties / (nearer + tied)

    # Market-1501: precision just before the match, and at it.
    before = nearer + tied_before
    precision_before = np.divide(found - 1, before, out=np.ones(len(query)), where=before > 0)
    trapezoid = (precision_before + found / (before + 1)) / 2

    matched = count > 0
    first_rank, last_rank = np.zeros((2, query_count), np.int64)
    first_rank[matched] = before[first[matched]] + 1
    last_rank[matched] = before[(first + count - 1)[matched]] + 1
    return Ranks(count, _means(query, precision, count), _means(query, trapezoid, count), first_rank, last_rank, junk)


def _means(group, values, count):
    """Mean of the values [M] of each group, NaN for a group without any."""
    sums = np.bincount(group, values, minlength=len(count))
    return np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)


def _in_processes(function, tasks, workers, description):
    """The results of function(task), in order, with a progress bar; with `workers` > 1 from that many processes."""
    import tqdm
    bar = functools.partial(tqdm.tqdm, total=len(tasks), desc=description, leave=False, delay=1)
    if workers == 1:
        yield from bar(map(function, tasks))
        return
    import concurrent.futures
    import multiprocessing
    import os
    # The linear algebra of a process gets its share of the cores; it looks at these when it is loaded.
    threads = str(max(1, os.cpu_count() // workers))
    for variable in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(variable, threads)
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _live_no_longer_than_the_parent) as pool:
        try:
            yield from bar(pool.map(function, tasks))
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():  # Or the pool would wait until their work is done.
                process.terminate()
            raise
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InputError('A process of --workers was killed, most likely for lack of memory. Take fewer.') from error


def _live_no_longer_than_the_parent():
    """A worker's first act: from now on it ends when its parent does, however that ended, and leaves Ctrl+C to it."""
    import multiprocessing
    import os
    import signal
    import threading

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    # Ctrl+C reaches all processes of a terminal; one of them is enough to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


# --- Nearest neighbours -----------------------------------------------------------------------------------------------

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
    found = _nearest(Distances, query_embeddings, query_fids, gallery_embeddings, gallery_fids, k, metric, excluder,
                     keep_excluded, batch_size, workers)
    return dataclasses.replace(found, distances=shown(found.distances, metric))


def shown(exact, metric):
    """Distances as `Distances.exact` gives them, in the metric's own unit."""
    if metric == 'euclidean':
        return np.sqrt(exact + 1e-12)
    return exact / 2 if metric == 'cosine' else exact


def _nearest(kind, query_embeddings, query_fids, gallery_embeddings, gallery_fids, k, metric, excluder, keep_excluded,
             batch_size, workers):
    """As `nearest`, for distances of the class `kind`, in the unit that they compare in."""
    _check_dimensions(query_embeddings, gallery_embeddings)
    find = functools.partial(_nearest_of_part, kind, query_embeddings, gallery_embeddings, gallery_fids, k, metric,
                             excluder, keep_excluded, batch_size)
    count = len(query_fids)
    parts = [(part.start, query_fids[part]) for part in _batches(count, min(QUERIES_AT_ONCE, -(-count // workers)))]
    found = _in_processes(find, parts, workers, 'Neighbours')
    return Neighbours(*map(np.concatenate, zip(*found)))


def _nearest_of_part(kind, query_embeddings, gallery, gallery_fids, k, metric, excluder, keep_excluded, batch_size,
                     part):
    """Rows, distances and exclusion [n, k] for a part of the queries: (number of the first one, file ids [n])."""
    start, query_fids = part
    distances = kind(_read(query_embeddings, start, start + len(query_fids)), metric)
    batches = [np.arange(batch.start, batch.stop) for batch in _batches(len(query_fids), batch_size)]
    best = [_no_candidates()] * len(batches)
    for rows, embs in _chunks(gallery, 0, len(gallery_fids)):
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


# --- Re-ranking by k-reciprocal neighbours ----------------------------------------------------------------------------

@dataclasses.dataclass
class Reranking:
    """What re-ranking by k-reciprocal neighbours knows of all images (Zhong et al. 2017).

    furthest: distance of the image furthest from each query, float64 [Q].
    query_encodings, gallery_encodings: sparse float64 [Q, N] and [G, N], weights of each image's neighbours among all N
        images; rows sum to 1. The gallery's are stored by column.
    weight: the paper's λ, of the distance itself.
    """
    furthest: np.ndarray
    query_encodings: object
    gallery_encodings: object
    weight: float

    def applied_to(self, distances, block):
        """The new distances of a slice of the queries, given their `Distances`."""
        pairs, overlaps = _overlaps(self.query_encodings[block], self.gallery_encodings)
        return RerankedDistances(distances, self.furthest[block], pairs, overlaps, self.gallery_encodings.shape[0],
                                 self.weight)


class RerankedDistances:
    """`Distances` after re-ranking: λ · distance / furthest + (1 - λ) · Jaccard distance. The methods are theirs.

    The Jaccard distance is 1 but for the few pairs whose neighbours overlap, of which alone a note is kept.
    """

    def __init__(self, distances, furthest, pairs, overlaps, gallery_size, weight):
        """
        Args:
            distances: the `Distances` of Q queries.
            furthest: float64 [Q].
            pairs: of images with overlapping neighbours, sorted: query · gallery_size + row, int64 [n].
            overlaps: float64 [n], how far they overlap.
            gallery_size: G.
            weight: λ.
        """
        self.distances = distances
        self.furthest = furthest
        self.pairs = pairs
        self.jaccard = 1 - overlaps / (2 - overlaps)
        self.gallery_size = gallery_size
        self.weight = weight
        self.prepare = distances.prepare

    def approximate(self, batch, chunk):
        approximate, error = self.distances.approximate(batch, chunk)
        scale = self.weight / self.furthest[batch]
        approximate *= scale[:, None].astype(np.float32)
        approximate += np.float32(1 - self.weight)
        first_pair = batch * self.gallery_size
        first = np.searchsorted(self.pairs, first_pair + chunk.rows[0])
        last = np.searchsorted(self.pairs, first_pair + chunk.rows[-1], 'right')
        pairs = _ranges(first, last)
        queries = np.repeat(np.arange(len(batch)), last - first)
        rows = self.pairs[pairs] - first_pair[queries]
        columns = np.searchsorted(chunk.rows, rows)
        there = chunk.rows[columns] == rows  # A chunk need not hold all rows between its first and its last.
        nearer = (1 - self.weight) * (1 - self.jaccard[pairs[there]])
        approximate[queries[there], columns[there]] -= nearer.astype(np.float32)
        largest = np.abs(approximate).max(axis=1).astype(np.float64) + 1
        return approximate, error * scale + 16 * ROUNDING * largest

    def exact(self, queries, chunk, columns):
        pairs = queries * self.gallery_size + chunk.rows[columns]
        place = np.searchsorted(self.pairs, pairs)
        overlapping = np.flatnonzero(np.append(self.pairs, -1)[place] == pairs)
        jaccard = np.ones(len(pairs))
        jaccard[overlapping] = self.jaccard[place[overlapping]]
        relative = self.distances.exact(queries, chunk, columns) / self.furthest[queries]
        return self.weight * relative + (1 - self.weight) * jaccard


class _Furthest(Distances):
    """Distances with the opposite sign: the nearest image is the furthest."""

    def approximate(self, batch, chunk):
        approximate, error = super().approximate(batch, chunk)
        return np.negative(approximate, out=approximate), error

    def exact(self, queries, chunk, columns):
        return -super().exact(queries, chunk, columns)


class _Stacked:
    """The embeddings of two sources, one below the other."""

    def __init__(self, first, second):
        self.first, self.second = first, second
        self.shape = len(first) + len(second), first.shape[1]

    def rows(self, start, stop):
        border = len(self.first)
        return np.concatenate([_read(self.first, min(start, border), min(stop, border)),
                               _read(self.second, max(start - border, 0), max(stop - border, 0))])


def k_reciprocal(query_embeddings, gallery_embeddings, metric, k1=20, k2=6, weight=0.3, batch_size=256, workers=1):
    """Prepare re-ranking with k-reciprocal encoding (Zhong et al. 2017, sections 3.2 to 3.5, and their code).

    As in the authors' code queries and gallery are one set, junk included, and distances are squared (all but those of
    `cityblock`). Here the sets of neighbours are sparse, and neighbours are found in passes over the gallery: memory
    grows with the number of images, not with its square.

    Args:
        query_embeddings, gallery_embeddings: open `Embeddings` or arrays [Q, D], [G, D].
        metric: one of METRICS.
        k1: neighbours that may be reciprocal.
        k2: neighbours whose encodings are averaged (local query expansion).
        weight: λ, the weight of the distance itself beside the Jaccard distance.
        batch_size, workers: as in `rank`.

    Returns: `Reranking`, for `rank`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    from scipy import sparse
    _check_dimensions(query_embeddings, gallery_embeddings)
    everyone = _Stacked(query_embeddings, gallery_embeddings)
    query_count, count = len(query_embeddings), everyone.shape[0]
    no_fids = np.zeros(count, object)
    neighbours = functools.partial(_nearest, query_embeddings=everyone, query_fids=no_fids, gallery_embeddings=everyone,
                                   gallery_fids=no_fids, metric=metric, excluder=None, keep_excluded=False,
                                   batch_size=batch_size, workers=workers)
    near = neighbours(Distances, k=min(max(k1 + 1, k2), count)).rows
    furthest = -neighbours(_Furthest, k=1).distances[:, 0]
    furthest[furthest < SMALLEST] = 1  # All images have one embedding.

    def reciprocal(k):
        among_first = _table(near[:, :k])
        return among_first.multiply(among_first.T).tocsr()

    # R(p, k1) grows by R(q, k1/2) of each of its members q that shares more than two thirds of that with it.
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
    return Reranking(furthest[:query_count], encoding[:query_count], encoding[query_count:].tocsc(), weight)


def _table(neighbours):
    """The sparse [N, N] matrix with ones at the neighbours [N, k] of each row."""
    from scipy import sparse
    count, k = neighbours.shape
    ones = np.ones(count * k, np.int32)
    return sparse.csr_array((ones, neighbours.ravel(), np.arange(0, count * k + 1, k)), (count, count))


def _pair_distances(source, metric, queries, rows):
    """Exact distances, float64 [n], of pairs of images of one source, sorted by `queries`."""
    exact = np.empty(len(queries))
    for block in _batches(source.shape[0], QUERIES_AT_ONCE):
        distances = Distances(source.rows(block.start, block.stop), metric)
        of_block = np.arange(*np.searchsorted(queries, [block.start, block.stop]))
        of_block = of_block[np.argsort(rows[of_block], kind='stable')]
        for chunk_rows, embs in _chunks(source, 0, source.shape[0]):
            first, last = np.searchsorted(rows[of_block], [chunk_rows[0], chunk_rows[-1] + 1])
            pairs = of_block[first:last]
            chunk = distances.prepare(chunk_rows, embs)
            exact[pairs] = distances.exact(queries[pairs] - block.start, chunk, rows[pairs] - chunk_rows[0])
    return exact


def _overlaps(queries, gallery):
    """Sums over columns of the smaller of two rows' values, for all pairs of rows where that is not 0.

    Args:
        queries, gallery: sparse matrices [Q, N] by row, [G, N] by column.

    Returns: query · G + row of the gallery, int64 [n], sorted, and the sums, float64 [n].
    """
    pairs, sums = [], []
    for query in range(queries.shape[0]):
        entries = slice(queries.indptr[query], queries.indptr[query + 1])
        columns = queries.indices[entries]
        first, last = gallery.indptr[columns], gallery.indptr[columns + 1]
        shared = _ranges(first, last)
        smaller = np.minimum(np.repeat(queries.data[entries], last - first), gallery.data[shared])
        of_row = np.bincount(gallery.indices[shared], smaller, minlength=gallery.shape[0])
        rows = np.flatnonzero(of_row)
        pairs.append(query * gallery.shape[0] + rows)
        sums.append(of_row[rows])
    return np.concatenate(pairs), np.concatenate(sums)

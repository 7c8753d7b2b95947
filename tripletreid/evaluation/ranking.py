"""Exact ranks of true matches in a gallery of any size.

AP and CMC need only the rank of each true match. A query has few matches: they are measured first, exactly, and ranked
among themselves. Then the gallery is read in chunks, and the non-matches ranked above each match are counted
(`counting.py`). Counts of chunks add up, so memory does not grow with the gallery, and processes share the work.
"""
import dataclasses
import functools

import numpy as np

from tripletreid.evaluation import chunks, scores
from tripletreid.evaluation.counting import Counts, Matches, Search, Task, count
from tripletreid.evaluation.distances import Distances, PreciseDistances, check_dimensions
from tripletreid.evaluation.retrieval_metrics import joined, ranks_of
from tripletreid.evaluation.workers import pool


def rank(retrieval, census=None):
    """Rank the gallery for every query.

    Args:
        retrieval: `Retrieval`.
        census: a `Census` that counts all pairs; it does not support re-ranked distances.

    Returns: `Ranks`.

    Raises:
        InputError: other dimensions in query and gallery, or embeddings that cannot be compared.
    """
    one_part = np.zeros(len(retrieval.gallery_set), np.int8)
    return rank_parts(retrieval, one_part, census)[0]


def rank_parts(retrieval, parts, census=None):
    """Rank every part of the gallery for every query, as if it were the whole gallery, in one pass.

    Args:
        retrieval, census: as for `rank`.
        parts: number of each gallery image's part, integers [G] from 0 on.

    Returns: a list of `Ranks`, one per part.

    Raises:
        InputError: as `rank`.
    """
    query_set, gallery_set, gallery = retrieval.query_set, retrieval.gallery_set, retrieval.gallery_embeddings
    check_dimensions(retrieval.query_embeddings, gallery)
    part_count = int(parts.max(initial=0)) + 1
    query_pids, gallery_pids = retrieval.numbered_pids
    blocks = []  # For each block of queries the `Ranks` of all parts.
    with pool(retrieval.workers) as share:
        for block in query_blocks(query_pids, gallery_pids, chunks.queries_at_once(retrieval.reranking)):
            kind = Distances if census is None else PreciseDistances
            distances = kind(chunks.read(retrieval.query_embeddings, block.start, block.stop), retrieval.metric)
            if retrieval.reranking is not None:
                distances = retrieval.reranking.applied_to(distances, block)
            matches = matches_of(distances, query_pids[block], gallery, gallery_pids, parts, part_count)
            search = Search(distances, matches, query_set.fids[block], gallery, retrieval.excluder, part_count,
                             retrieval.batch_size, census and census.plan, block.start)
            tasks = [Task(some.start, gallery_set.fids[some], parts[some])
                     for some in chunks.tasks_of_gallery(len(parts), share.count)]
            counts = Counts.zero(len(matches), len(search.query_fids), part_count)
            for counts_of_task in share(functools.partial(count, search), tasks, 'Gallery'):
                counts.add(counts_of_task)
                if census is not None:
                    census.tally.add(counts_of_task.tally)
            if census is not None:
                valid = matches.take(~counts.ignored)
                census.add_matches(block.start + valid.query, valid.distance)
            blocks.append(_ranks_of_parts(matches, counts))
    return [joined(blocks_of_part) for blocks_of_part in zip(*blocks)]


def _ranks_of_parts(matches, counts):
    """Return the `Ranks` of each part, a list, given the `Counts` of the whole gallery."""
    valid = ~counts.ignored
    part_count = len(counts.junk)
    ranks = ranks_of(matches.ranked_list(part_count)[valid], matches.distance[valid], counts.in_front[valid],
                     counts.up_to[valid], counts.others.ravel(), junk=0)
    ignored = np.bincount(matches.part[counts.ignored], minlength=part_count)
    part_ranks = [dataclasses.replace(ranks.take(slice(part, None, part_count)), junk=int(counts.junk[part]),
                                      ignored_matches=int(ignored[part])) for part in range(part_count)]
    return [dataclasses.replace(each, scores=scores.query_values(each)) for each in part_ranks]


def query_blocks(query_pids, gallery_pids, at_once):
    """Return slices of at most `at_once` queries, given `Retrieval.numbered_pids`; the gallery is read once per slice."""
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
    """Find the `Matches` of all queries in the gallery, valid and ignored ones."""
    found = [Matches(np.zeros(0, np.int64), parts[:0], np.zeros(0, np.int64), np.zeros(0))]
    wanted = np.isin(gallery_pids, query_pids)
    for rows, embs in chunks.gallery_chunks(gallery, 0, len(gallery_pids), wanted):
        by_pid = np.argsort(gallery_pids[rows], kind='stable')
        sorted_pids = gallery_pids[rows][by_pid]
        first, last = (np.searchsorted(sorted_pids, query_pids, side) for side in ('left', 'right'))
        queries = np.repeat(np.arange(len(query_pids)), last - first)
        columns = by_pid[chunks.ranges(first, last)]
        exact = distances.exact(queries, distances.prepare(rows, embs), columns)
        found.append(Matches(queries, parts[rows[columns]], rows[columns], exact))
    matches = Matches(**{field.name: np.concatenate([getattr(some, field.name) for some in found])
                         for field in dataclasses.fields(Matches)})
    # Stable sorts keep the order of rows at equal distances. Sorting list by list is much faster than all at once.
    ranked_list = matches.ranked_list(part_count)
    order = np.argsort(ranked_list, kind='stable')
    starts = np.flatnonzero(np.diff(ranked_list[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)]):
        some = order[start:stop]
        order[start:stop] = some[np.argsort(matches.distance[some], kind='stable')]
    return matches.take(order)

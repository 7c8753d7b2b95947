"""Ranks of the true matches, average precision by two definitions, and CMC."""
import dataclasses

import numpy as np

from tripletreid.evaluation import chunks

ARRAYS = ('matches', 'valid', 'ap_sklearn', 'ap_market1501', 'first_match_rank', 'last_match_rank')


class NoMatchRanks(Exception):
    """A score needs the ranks of all matches, and only the ranks of the first and the last are known."""


@dataclasses.dataclass
class Ranks:
    """Ranks that scores are computed from: arrays [Q], one entry per query, and one number about the gallery.

    matches: int64, valid gallery images of the query's identity.
    valid: int64, gallery images that the query does not ignore, matches included; for a query without a match it may be 0.
    ap_sklearn: float64, average precision as scikit-learn (since 0.19) defines it: the mean over matches of the
        precision at the match's distance, where images at equal distances are found together. NaN without a match.
    ap_market1501: float64, average precision of the Market-1501 benchmark: the area under the precision-recall curve
        by trapezoids, images at equal distances in the order of the gallery. NaN without a match.
    first_match_rank, last_match_rank: int64, ranks of the nearest and the furthest match, counted from 1 among the
        valid images, at equal distances in the order of the gallery. 0 without a match.
    junk: number of gallery images that every query ignores.
    ignored_matches: number of pairs of a query and an image of its identity that the query ignores.
    all_match_ranks: int64 [matches.sum()], the ranks of all matches, query by query, ascending; None where they are no
        longer known, because they would take memory for every match.
    scores: {name: float64 [Q]}, the scores of scores/, once they are computed.
    """
    matches: np.ndarray
    valid: np.ndarray
    ap_sklearn: np.ndarray
    ap_market1501: np.ndarray
    first_match_rank: np.ndarray
    last_match_rank: np.ndarray
    junk: int
    ignored_matches: int = 0
    all_match_ranks: np.ndarray | None = None
    scores: dict = dataclasses.field(default_factory=dict)

    def take(self, which):
        """Return the ranks of some queries, given a slice, an index array or a mask."""
        ranks = self.all_match_ranks
        if ranks is not None:
            ends = np.cumsum(self.matches)
            ranks = ranks[chunks.ranges((ends - self.matches)[which], ends[which])]
        return dataclasses.replace(self, **{name: getattr(self, name)[which] for name in ARRAYS}, all_match_ranks=ranks,
                                   scores={name: values[which] for name, values in self.scores.items()})

    @property
    def matched(self):
        """True for each query with a match, bool [Q]; other queries count in no score."""
        return self.matches > 0

    def matches_within(self, rank):
        """Count the matches of each query whose rank is at most `rank`, a number or an array [Q]: int64 [Q].

        Raises:
            NoMatchRanks: the ranks of all matches are no longer known.
        """
        if self.all_match_ranks is None:
            raise NoMatchRanks
        query = np.repeat(np.arange(len(self.matches)), self.matches)
        within = self.all_match_ranks <= np.broadcast_to(rank, self.matches.shape)[query]
        return np.bincount(query[within], minlength=len(self.matches))

    def cmc(self, length):
        """Return the fraction of matched queries whose first match has rank 1, at most 2, …, at most `length`: float64."""
        at_rank = np.bincount(self.first_match_rank[self.matched] - 1, minlength=length)
        return np.cumsum(at_rank[:length]) / self.matched.sum()


def joined(blocks):
    """Join the `Ranks` of successive blocks of queries in one gallery; the ranks of all matches are dropped."""
    arrays = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in ARRAYS}
    scores = {name: np.concatenate([block.scores[name] for block in blocks]) for name in blocks[0].scores}
    return Ranks(**arrays, junk=blocks[0].junk, ignored_matches=sum(block.ignored_matches for block in blocks),
                 scores=scores)


def ranks_of(query, distance, in_front, up_to, others, junk):
    """Compute the `Ranks` of queries, given their matches sorted by query, distance and row, and counts of non-matches.

    Args:
        query: int64 [M], number of each match's query.
        distance: float64 [M].
        in_front: int64 [M], images of other identities that are nearer, or equally near with a smaller row.
        up_to: int64 [M], images of other identities that are nearer or equally near.
        others: int64 [Q], valid images of other identities.
        junk: as in `Ranks`.
    """
    query_count = len(others)
    count = np.bincount(query, minlength=query_count)
    first = np.cumsum(count) - count
    found = np.arange(len(query)) - first[query] + 1  # The k of the k-th match.

    # Scikit-learn: all images of one distance are found at once.
    last_of_tie = np.ones(len(query), bool)
    last_of_tie[:-1] = (query[1:] != query[:-1]) | (distance[1:] != distance[:-1])
    ends = np.flatnonzero(last_of_tie)
    found_with_ties = np.repeat(found[ends], np.diff(ends, prepend=-1))
    precision = found_with_ties / (up_to + found_with_ties)

    # Market-1501: precision just before the match, and at it.
    before = in_front + found - 1
    precision_before = np.divide(found - 1, before, out=np.ones(len(query)), where=before > 0)
    trapezoid = (precision_before + found / (before + 1)) / 2

    matched = count > 0
    first_rank, last_rank = np.zeros((2, query_count), np.int64)
    first_rank[matched] = before[first[matched]] + 1
    last_rank[matched] = before[(first + count - 1)[matched]] + 1
    return Ranks(count, count + others, _means(query, precision, count), _means(query, trapezoid, count), first_rank,
                 last_rank, junk, all_match_ranks=before + 1)


def _means(group, values, count):
    """Return the mean of the values [M] of each group, NaN for an empty group."""
    sums = np.bincount(group, values, minlength=len(count))
    return np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)

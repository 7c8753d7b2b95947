"""What follows from the ranks of the true matches: average precision by two definitions, CMC and mINP."""
import dataclasses

import numpy as np

ARRAYS = ('matches', 'ap_sklearn', 'ap_market1501', 'first_match_rank', 'last_match_rank')


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

    def take(self, which):
        """The ranks of some queries, given a slice, an index array or a mask."""
        return dataclasses.replace(self, **{name: getattr(self, name)[which] for name in ARRAYS})

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


def joined(blocks):
    """The `Ranks` of several blocks of queries, one behind the other, in one gallery."""
    arrays = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in ARRAYS}
    return Ranks(**arrays, junk=blocks[0].junk)


def ranks_of(query_count, query, distance, in_front, up_to, junk):
    """The `Ranks` of queries, given their matches sorted by query, distance and row, and counts of the other images.

    Args:
        query: int64 [M], number of each match's query.
        distance: float64 [M].
        in_front: int64 [M], images of other identities that are nearer, or as near and of a smaller row.
        up_to: int64 [M], images of other identities that are nearer or as near.
    """
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
    return Ranks(count, _means(query, precision, count), _means(query, trapezoid, count), first_rank, last_rank, junk)


def _means(group, values, count):
    """Mean of the values [M] of each group, NaN for a group without any."""
    sums = np.bincount(group, values, minlength=len(count))
    return np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)

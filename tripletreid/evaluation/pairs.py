"""How near the pairs of different identities are: exact counts and exact ranks of distances, from one pass.

There are far too many such pairs to keep their distances, or to measure them exactly. So a histogram of approximate
distances counts most of them. The bins that hold a distance of interest, a level, are looked into: there the
approximate distances are compared with the levels, and those that are closer to one than their error are measured
exactly. Which distance has a given rank is told by the bins around it, whose distances are all measured and kept; a
sample of the gallery has told which these will be, and should it have been wrong, another pass is made.

Distances are in the unit of `Distances.exact`, where nothing else is said.
"""
import dataclasses
import functools

import numpy as np

from tripletreid.evaluation import chunks
from tripletreid.evaluation.distances import shown

BINS = 1 << 15
IMAGES_AT_ONCE = 1024  # Of a chunk; with a query batch of 256 their distances, 2 MB, stay in the processor's cache.
LOOKED_INTO_AT_ONCE = 1 << 20  # Distances, at least.
KEPT_AT_MOST = 1 << 22  # Pairs.
MEASURED_AT_MOST = 1 << 15  # Of the kept ones. Where more pairs seem to be equal, another pass measures all at once.


@dataclasses.dataclass
class Plan:
    """What is to be learnt in a pass.

    low, high: float64 [L], ascending: a distance from low to high is at the level, and `low` may be just above `high`.
    bottom, top: range of the bins; the first and the last also count what is outside. With levels `bottom` is 0.
    kept: bool [BINS], bins whose distances are kept.
    measured: whether these are measured exactly at once, which takes longer but joins those that are equal.
    """
    low: np.ndarray
    high: np.ndarray
    bottom: float
    top: float
    kept: np.ndarray
    measured: bool = False

    @property
    def width(self):
        return (self.top - self.bottom) / (BINS - 0.5)  # Half a bin: roundings move `top` into no other bin.

    @property
    def tolerable(self):
        """The error that a distance may have in the search for its bin, besides that of being rounded to float32."""
        return self.width / 32

    def bins_of(self, distances):
        """The bin of each distance, int64 of the same shape, for ascending distances ascending."""
        scaled = np.minimum(distances, distances.dtype.type(self.top))
        if self.bottom:
            scaled -= scaled.dtype.type(self.bottom)
            np.maximum(scaled, 0, out=scaled)
        scaled *= scaled.dtype.type(1 / self.width)
        # The detour takes half the time.
        return scaled.astype(np.uint16).astype(np.int64)

    def bins_of_pairs(self, distances, passed_over):
        """The bin of each of the distances [B, C], int64 [B·C], and BINS of what is `passed_over`, bool [B, C]."""
        bins = self.bins_of(distances)
        np.copyto(bins, BINS, where=passed_over)
        return bins.reshape(-1)

    def edge(self, bin_):
        """Where a bin begins, but for rounding."""
        return self.bottom + bin_ * self.width

    @functools.cached_property
    def looked_into(self):
        """Bins that are looked into, bool [BINS + 1]: all that can hold a distance at a level, or one that is kept. Not
        the last one, that of what is passed over."""
        changes = np.bincount(self.bins_of(self.low - 2 * self.tolerable), minlength=BINS + 1)
        changes -= np.bincount(self.bins_of(np.maximum(self.high, 0) + 2 * self.tolerable) + 1, minlength=BINS + 1)
        return (np.cumsum(changes) > 0) | np.append(self.kept, False)


class Tally:
    """What is learnt of some pairs by a `Plan`.

    bins: int64 [BINS], how many of their distances are in each.
    below, up_to: int64 [L], how many in the bins that are looked into are below each level, and up to it.
    error: bound of the errors of the distances that are kept.
    kept: of the pairs in kept bins, a list of (approximate distances, numbers of queries, rows of the gallery).
    measured: instead, exact distances, ascending, and how often each occurs: a list of pairs of arrays.
    too_many: whether there were too many to keep.
    """

    def __init__(self, plan):
        self.plan = plan
        self.bins = np.zeros(BINS, np.int64)
        self.below, self.up_to = np.zeros((2, len(plan.low)), np.int64)
        self.error = 0.0
        self.kept, self.measured = [], []
        self.too_many = False

    @property
    def pairs(self):
        """How many pairs there are."""
        return int(self.bins.sum())

    def add(self, other):
        """Add what is learnt of other pairs."""
        self.bins += other.bins
        self.below += other.below
        self.up_to += other.up_to
        self.error = max(self.error, other.error)
        self.too_many |= other.too_many
        self.keep(other.kept, other.measured)

    def keep(self, kept, measured):
        """Keep more pairs, given as the attributes of these names."""
        self.kept += kept
        self.measured += measured
        if sum(len(values) for values, _ in self.measured) > KEPT_AT_MOST // 4:
            values, counts = (np.concatenate(arrays) for arrays in zip(*self.measured))
            distinct, place = np.unique(values, return_inverse=True)
            self.measured = [(distinct, np.bincount(place, counts, len(distinct)).astype(np.int64))]
        if sum(len(each[0]) for each in self.kept + self.measured) > KEPT_AT_MOST:
            self.too_many = True
        if self.too_many:
            self.kept, self.measured = [], []

    def counts(self):
        """How many distances are below each level, and up to it: int64 [L], [L]."""
        before = np.cumsum(np.append(0, np.where(self.plan.looked_into[:BINS], 0, self.bins)))
        before = before[self.plan.bins_of(self.plan.low)]
        return before + self.below, before + self.up_to

    def ranked(self, rank, metric, exact):
        """The distance that has a rank, counted from 0, as `shown` shows it, and how many are smaller as it shows them.

        Args:
            exact: function of numbers of queries and rows of the gallery [n], exact distances float64 [n].

        Returns: a float and an int, or None where this pass does not tell.
        """
        plan = self.plan
        up_to = np.cumsum(self.bins)
        first = last = int(up_to.searchsorted(rank, 'right'))
        if self.too_many or not plan.kept[first]:
            return None
        while first > 0 and plan.kept[first - 1]:
            first -= 1
        while last < BINS - 1 and plan.kept[last + 1]:
            last += 1
        before = up_to[first] - self.bins[first]
        start = plan.edge(first) - plan.width / 2 if first else -np.inf
        end = plan.edge(last + 1) + plan.width / 2 if last < BINS - 1 else np.inf
        if not plan.measured:
            near = [(start <= kept[0]) & (kept[0] < end) for kept in self.kept]
            here = [[each[mask] for each in kept] for kept, mask in zip(self.kept, near)]
            values, query, row = (np.concatenate(arrays) for arrays in zip(*here))
            # Only those that may have the rank are measured, and those that may be shown as the same distance.
            close = np.partition(values, rank - before)[rank - before]
            off = 4 * self.error + 1e-27
            before += int((values < close - off).sum())
            chosen = np.flatnonzero(np.abs(values - close) <= off)
            if len(chosen) > MEASURED_AT_MOST:
                return None
            distinct, counts = np.unique(exact(query[chosen], row[chosen]), return_counts=True)
        else:
            values, counts = (np.concatenate(arrays) for arrays in zip(*self.measured))
            chosen = np.flatnonzero((start <= values) & (values < end))
            distinct, place = np.unique(values[chosen], return_inverse=True)
            counts = np.bincount(place, counts[chosen], len(distinct)).astype(np.int64)
        counted = np.cumsum(counts)
        found = distinct[counted.searchsorted(rank - before, 'right')]
        # Approximately it may be in the bins, exactly in front of them or behind, and another one the other way round.
        if up_to[first] > self.bins[first] and found < start + plan.width or found > end - plan.width:
            return None
        smaller = int((shown(distinct, metric) < shown(found, metric)).sum())
        return float(shown(found, metric)), int(before + (counted[smaller - 1] if smaller else 0))

    def next_plan(self, rank):
        """The `Plan` of a pass after which more is known of the distance that has a rank, counted from 0."""
        plan, none, kept = self.plan, np.zeros(0), np.zeros(BINS, bool)
        bin_ = int(np.cumsum(self.bins).searchsorted(rank, 'right'))
        if bin_ == BINS - 1:
            return Plan(none, none, 0.0, 1000 * plan.top, kept)
        if plan.measured and self.too_many and plan.kept[bin_]:
            return Plan(none, none, plan.edge(max(0, bin_ - 1)), plan.edge(bin_ + 2), kept)
        around = slice(max(0, bin_ - 1), bin_ + 2)
        kept[around] = True
        return Plan(none, none, plan.bottom, plan.top, kept, measured=self.bins[around].sum() > MEASURED_AT_MOST)


class Counter:
    """Makes a `Tally` of the pairs of queries and a gallery's chunks, and approximate distances on the way."""

    def __init__(self, distances, plan, first_query=0):
        """Takes `PreciseDistances`, a `Plan`, and the number of the first query among all queries."""
        self.distances = distances
        self.first_query = first_query
        self.plan = plan
        self.tally = Tally(plan)
        self.error = 0.0  # Of the approximate distances that are pending.
        self.pending = []
        self.pending_size = 0
        self.pending_at_most = max(LOOKED_INTO_AT_ONCE, 4 * len(plan.low))

    def count(self, batch, chunk, passed_over):
        """Count the pairs of some queries and a chunk.

        Args:
            batch: numbers of the queries [B].
            chunk: `Chunk` of C images.
            passed_over: bool [B, C], pairs that are not counted.

        Returns: those of `PreciseDistances.approximate`, rounded to float32 [B, C], and the bound of their errors before
            that, float64 [B].
        """
        approximate, largest_error = np.empty((len(batch), len(chunk.rows)), np.float32), np.zeros(len(batch))
        for columns in chunks.slices(len(chunk.rows), IMAGES_AT_ONCE):
            tile = chunk.take(columns)
            precise, error = self.distances.approximate(batch, tile)
            approximate[:, columns] = precise
            np.maximum(largest_error, error, out=largest_error)
            self._count_tile(batch, tile, precise, error, passed_over[:, columns], approximate[:, columns])
        return approximate, largest_error

    def _count_tile(self, batch, tile, precise, error, passed_over, rounded):
        plan, tally = self.plan, self.tally
        inexact = np.flatnonzero(error > plan.tolerable)
        for q in inexact:
            columns = np.arange(len(tile.rows))
            precise[q] = self.distances.exact(np.full(len(columns), batch[q]), tile, columns)
        self.error = max(self.error, error[error <= plan.tolerable].max(initial=0))
        # To find the bin, float32 will do where bins begin at 0.
        bins = plan.bins_of_pairs(precise if plan.bottom or len(inexact) else rounded, passed_over)
        tally.bins += np.bincount(bins, minlength=BINS + 1)[:BINS]
        here = np.flatnonzero(plan.looked_into.take(bins))
        if len(here):
            values = np.maximum(precise.reshape(-1).take(here), 0)  # Rounding may have put the equal below.
            self.pending.append((batch, tile, here, values, plan.kept.take(bins.take(here))))
            self.pending_size += len(here)
            if self.pending_size >= self.pending_at_most:
                self._look_into()

    def result(self):
        """The `Tally` of all pairs that were counted."""
        if self.pending:
            self._look_into()
        if self.tally.kept:  # Of each tile a few.
            self.tally.kept = [tuple(np.concatenate(arrays) for arrays in zip(*self.tally.kept))]
        return self.tally

    def _look_into(self):
        """Compare the pending distances with the levels, and keep those in kept bins."""
        plan, error = self.plan, self.error
        values = np.concatenate([*(values for *_, values, _ in self.pending), [np.inf]])
        in_order = np.sort(values)
        below = up_to = in_order.searchsorted(plan.low - error)
        unsure = in_order[below] <= plan.high + error
        if unsure.any():
            low, high = plan.low[unsure], plan.high[unsure]
            start = 0
            for batch, tile, here, of_tile, _ in self.pending:
                near_level = high.searchsorted(of_tile - error) < low.searchsorted(of_tile + error, 'right')
                chosen = np.flatnonzero(near_level)
                if len(chosen):
                    values[start + chosen] = self._exact(batch, tile, here[chosen])
                start += len(here)
            in_order = np.sort(values)
            below, up_to = in_order.searchsorted(plan.low), in_order.searchsorted(plan.high, 'right')
        self.tally.below += below
        self.tally.up_to += up_to
        for batch, tile, here, of_tile, kept in self.pending:
            if kept.any():
                if plan.measured:
                    self.tally.keep([], [np.unique(self._exact(batch, tile, here[kept]), return_counts=True)])
                else:
                    query, column = np.divmod(here[kept], len(tile.rows))
                    query, row = self.first_query + batch[query], tile.rows[column]
                    self.tally.keep([(of_tile[kept], query.astype(np.int32), row.astype(np.int32))], [])
        self.tally.error = max(self.tally.error, error)
        self.pending, self.pending_size, self.error = [], 0, 0.0

    def _exact(self, batch, tile, here):
        query, column = np.divmod(here, len(tile.rows))
        return self.distances.exact(batch[query], tile, column)


class Census:
    """What `ranking.rank` is told to learn of all pairs, and what it has learnt.

    plan, tally: a `Plan` and the `Tally` of all pairs of different identities.
    """

    def __init__(self, plan):
        self.plan = plan
        self.tally = Tally(plan)
        self._matches = []

    def add_matches(self, query, distance):
        """Note pairs of one identity: numbers of their queries and distances, [n]."""
        self._matches.append((query, distance))

    def matches(self):
        """All pairs of one identity, query by query, nearest first: queries int64 [M] and distances float64 [M]."""
        return tuple(np.concatenate(arrays) for arrays in zip(*self._matches))


def kept_bins(bins, rates, count):
    """The bins in which distances will probably be that have certain shares of all distances in front of them.

    Args:
        bins: of S samples of all pairs, histograms int64 [S, BINS].
        rates: these shares.
        count: of all pairs.

    Returns: bool [BINS]. If these would hold too many of the pairs, they are fewer and it is less probable.
    """
    shares = np.cumsum(bins, axis=1) / np.maximum(bins.sum(axis=1), 1)[:, None]
    share, error = shares.mean(axis=0), shares.std(axis=0, ddof=1) / np.sqrt(len(bins))
    fewest = 1 / max(1, bins.sum())  # What few pairs have cannot be known better.
    for deviations in (5, 4, 3, 2, 1):
        kept = np.zeros(BINS + 1, bool)
        for rate in rates:
            around = min(int(share.searchsorted(rate)), BINS - 1)
            off = deviations * (error[around] + np.sqrt(rate * fewest) + 2 * fewest)
            first, last = share.searchsorted([rate - off, rate + off])
            kept[max(0, first - 2):last + 3] = True
        kept = kept[:BINS]
        if bins.sum(axis=0)[kept].sum() * fewest * count < 0.8 * KEPT_AT_MOST:
            break
    return kept

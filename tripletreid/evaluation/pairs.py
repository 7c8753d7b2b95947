"""Distances of impostor pairs: exact counts and exact ranks, from one pass.

There are far too many pairs to keep their distances, or to measure them exactly. So a histogram of approximate distances
counts most of them. Bins that contain a distance of interest, a level, are inspected: there the approximate distances are
compared with the levels, and those closer to a level than their error are measured exactly. The distance of a given rank
is found in the bins around it, whose distances are all measured and kept. A sample of the gallery predicts these bins;
where the prediction is wrong, another pass follows.

Distances are in the unit of `Distances.exact`, unless stated otherwise.
"""
import dataclasses
import functools

import numpy as np

from tripletreid.evaluation.distances import shown

BINS = 1 << 15
INSPECTED_AT_ONCE = 1 << 20  # Fewest distances that are inspected together.
KEPT_AT_MOST = 1 << 22  # Most pairs whose distances are kept.
MEASURED_AT_MOST = 1 << 15  # Most kept pairs that are measured later; with more equal ones another pass measures all.


@dataclasses.dataclass
class Plan:
    """Instructions for a pass: distances to count and to keep.

    low, high: float64 [L], ascending: a distance from low to high is at the level, and `low` may be just above `high`.
    bottom, top: range of the bins; the first and the last also count distances outside. With levels `bottom` is 0.
    kept: bool [BINS], bins whose distances are kept.
    measured: whether these are measured exactly at once, which takes longer but joins equal ones.
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
        """The error that a distance may have when its bin is found, in addition to the rounding to float32."""
        return self.width / 32

    def bins_of(self, distances):
        """Return the bin of each distance, int64 of the same shape, monotonic in the distance."""
        scaled = np.minimum(distances, distances.dtype.type(self.top))
        if self.bottom:
            scaled -= scaled.dtype.type(self.bottom)
            np.maximum(scaled, 0, out=scaled)
        scaled *= scaled.dtype.type(1 / self.width)
        # Converting by way of uint16 takes half the time.
        return scaled.astype(np.uint16).astype(np.int64)

    def bins_of_pairs(self, distances, skipped):
        """Return the bin of each of the distances [B, C], int64 [B·C], and BINS where `skipped`, bool [B, C], is true."""
        bins = self.bins_of(distances)
        np.copyto(bins, BINS, where=skipped)
        return bins.reshape(-1)

    def edge(self, bin_):
        """Return the lower edge of a bin, except for rounding."""
        return self.bottom + bin_ * self.width

    @functools.cached_property
    def inspected(self):
        """Bins that are inspected, bool [BINS + 1]: all that can contain a distance at a level, and kept bins.

        The last one, of skipped pairs, is never inspected.
        """
        changes = np.bincount(self.bins_of(self.low - 2 * self.tolerable), minlength=BINS + 1)
        changes -= np.bincount(self.bins_of(np.maximum(self.high, 0) + 2 * self.tolerable) + 1, minlength=BINS + 1)
        return (np.cumsum(changes) > 0) | np.append(self.kept, False)


class Tally:
    """Counts of some pairs by a `Plan`.

    bins: int64 [BINS], number of distances per bin.
    below, up_to: int64 [L], number of distances in inspected bins below each level, and up to it.
    error: bound of the errors of kept distances.
    kept: list of (approximate distances, numbers of queries, rows of the gallery) of pairs in kept bins.
    measured: list of (exact distances, ascending, number of occurrences), in place of `kept` where the plan measures.
    kept_pairs: number of distances in `kept`.
    too_many: whether there were too many pairs to keep.
    """

    def __init__(self, plan):
        self.plan = plan
        self.bins = np.zeros(BINS, np.int64)
        self.below, self.up_to = np.zeros((2, len(plan.low)), np.int64)
        self.error = 0.0
        self.kept, self.measured = [], []
        self.kept_pairs = 0
        self.too_many = False

    @property
    def pairs(self):
        """The number of pairs."""
        return int(self.bins.sum())

    def add(self, other):
        """Add the counts of other pairs."""
        self.bins += other.bins
        self.below += other.below
        self.up_to += other.up_to
        self.error = max(self.error, other.error)
        self.too_many |= other.too_many
        self.keep(other.kept, other.measured)

    def keep(self, kept, measured):
        """Keep more pairs, in the form of the attributes `kept` and `measured`."""
        self.kept += kept
        self.kept_pairs += sum(len(values) for values, *_ in kept)
        self.measured += measured
        if sum(len(values) for values, _ in self.measured) > KEPT_AT_MOST // 4:
            values, counts = (np.concatenate(arrays) for arrays in zip(*self.measured))
            distinct, place = np.unique(values, return_inverse=True)
            self.measured = [(distinct, np.bincount(place, counts, len(distinct)).astype(np.int64))]
        if self.kept_pairs + sum(len(values) for values, _ in self.measured) > KEPT_AT_MOST:
            self.too_many = True
        if self.too_many:
            self.kept, self.measured = [], []

    def counts(self):
        """Return the number of distances below each level, and up to it: int64 [L], [L]."""
        before = np.cumsum(np.append(0, np.where(self.plan.inspected[:BINS], 0, self.bins)))
        before = before[self.plan.bins_of(self.plan.low)]
        return before + self.below, before + self.up_to

    def ranked(self, rank, metric, exact):
        """Find the distance with a rank, and the number of smaller ones.

        Args:
            rank: counted from 0.
            metric: one of METRICS, in whose unit distances are compared.
            exact: function of numbers of queries and rows of the gallery [n] that returns exact distances float64 [n].

        Returns: a float and an int, or None where this pass does not determine them.
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
            # Only pairs that may have the rank are measured, and pairs that may have the same distance in the unit.
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
        # Near the ends of the bins, approximate and exact distances may lie on different sides.
        if up_to[first] > self.bins[first] and found < start + plan.width or found > end - plan.width:
            return None
        smaller = int((shown(distinct, metric) < shown(found, metric)).sum())
        return float(shown(found, metric)), int(before + (counted[smaller - 1] if smaller else 0))

    def next_plan(self, rank):
        """Return the `Plan` of a pass that narrows down the distance with a rank, counted from 0."""
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
    """Counts pairs of queries and a gallery's chunks in a `Tally`, and returns approximate distances."""

    def __init__(self, distances, plan, first_query=0):
        """Start with `PreciseDistances`, a `Plan`, and the number of the first query among all queries."""
        self.distances = distances
        self.first_query = first_query
        self.plan = plan
        self.tally = Tally(plan)
        self.error = 0.0  # Error bound of the pending approximate distances.
        self.pending = []
        self.pending_size = 0
        self.pending_at_most = max(INSPECTED_AT_ONCE, 4 * len(plan.low))

    def count(self, batch, chunk, skipped):
        """Count the pairs of some queries and a chunk.

        Args:
            batch: numbers of the queries [B].
            chunk: `Chunk` of C images.
            skipped: bool [B, C], pairs that are not counted.

        Returns: distances of `PreciseDistances.approximate`, rounded to float32 [B, C], and the bound of their errors
            before rounding, float64 [B].
        """
        approximate, largest_error = np.empty((len(batch), len(chunk.rows)), np.float32), np.zeros(len(batch))
        for columns, tile in chunk.tiles:
            precise, error = self.distances.approximate(batch, tile)
            approximate[:, columns] = precise
            np.maximum(largest_error, error, out=largest_error)
            self._count_tile(batch, tile, precise, error, skipped[:, columns], approximate[:, columns])
        return approximate, largest_error

    def _count_tile(self, batch, tile, precise, error, skipped, rounded):
        plan, tally = self.plan, self.tally
        inexact = np.flatnonzero(error > plan.tolerable)
        for q in inexact:
            columns = np.arange(len(tile.rows))
            precise[q] = self.distances.exact(np.full(len(columns), batch[q]), tile, columns)
        self.error = max(self.error, error[error <= plan.tolerable].max(initial=0))
        # Float32 is precise enough to find the bin where bins begin at 0.
        bins = plan.bins_of_pairs(precise if plan.bottom or len(inexact) else rounded, skipped)
        tally.bins += np.bincount(bins, minlength=BINS + 1)[:BINS]
        here = np.flatnonzero(plan.inspected.take(bins))
        if len(here):
            values = np.maximum(precise.reshape(-1).take(here), 0)  # Rounding may make the distance of equal rows negative.
            self.pending.append((batch, tile, here, values, plan.kept.take(bins.take(here))))
            self.pending_size += len(here)
            if self.pending_size >= self.pending_at_most:
                self._inspect()

    def result(self):
        """Return the `Tally` of all counted pairs."""
        if self.pending:
            self._inspect()
        if self.tally.kept:  # Each tile has a few.
            self.tally.kept = [tuple(np.concatenate(arrays) for arrays in zip(*self.tally.kept))]
        return self.tally

    def _inspect(self):
        """Compare the pending distances with the levels, and keep the distances in kept bins."""
        plan, error = self.plan, self.error
        values = np.concatenate([*(values for *_, values, _ in self.pending), [np.inf]])
        in_order = np.sort(values)
        below = up_to = in_order.searchsorted(plan.low - error)
        unsure = in_order[below] <= plan.high + error
        if unsure.any():
            low, high = plan.low[unsure], plan.high[unsure]
            start = 0
            for batch, tile, here, tile_distances, _ in self.pending:
                near_level = high.searchsorted(tile_distances - error) < low.searchsorted(tile_distances + error, 'right')
                chosen = np.flatnonzero(near_level)
                if len(chosen):
                    values[start + chosen] = self._exact(batch, tile, here[chosen])
                start += len(here)
            in_order = np.sort(values)
            below, up_to = in_order.searchsorted(plan.low), in_order.searchsorted(plan.high, 'right')
        self.tally.below += below
        self.tally.up_to += up_to
        for batch, tile, here, tile_distances, kept in self.pending:
            if kept.any():
                if plan.measured:
                    self.tally.keep([], [np.unique(self._exact(batch, tile, here[kept]), return_counts=True)])
                else:
                    query, column = np.divmod(here[kept], len(tile.rows))
                    query, row = self.first_query + batch[query], tile.rows[column]
                    self.tally.keep([(tile_distances[kept], query.astype(np.int32), row.astype(np.int32))], [])
        self.tally.error = max(self.tally.error, error)
        self.pending, self.pending_size, self.error = [], 0, 0.0

    def _exact(self, batch, tile, here):
        query, column = np.divmod(here, len(tile.rows))
        return self.distances.exact(batch[query], tile, column)


class Census:
    """Counts all pairs while `ranking.rank` ranks.

    plan, tally: a `Plan` and the `Tally` of all impostor pairs.
    """

    def __init__(self, plan):
        self.plan = plan
        self.tally = Tally(plan)
        self._matches = []

    def add_matches(self, query, distance):
        """Add genuine pairs: numbers of their queries and distances, [n]."""
        self._matches.append((query, distance))

    def matches(self):
        """Return all genuine pairs, query by query, nearest first: queries int64 [M] and distances float64 [M]."""
        return tuple(np.concatenate(arrays) for arrays in zip(*self._matches))


def kept_bins(bins, rates, count):
    """Predict the bins that contain certain quantiles of all distances.

    Args:
        bins: histograms of S samples of all pairs, int64 [S, BINS].
        rates: the quantiles, fractions of all pairs.
        count: number of all pairs.

    Returns: bool [BINS]. Where these would contain too many pairs, they are fewer and the prediction is less safe.
    """
    shares = np.cumsum(bins, axis=1) / np.maximum(bins.sum(axis=1), 1)[:, None]
    share, error = shares.mean(axis=0), shares.std(axis=0, ddof=1) / np.sqrt(len(bins))
    fewest = 1 / max(1, bins.sum())  # The resolution of the samples.
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

"""Verification: do two images show one identity? ROC, EER and thresholds from the distances of all pairs."""
import dataclasses
import functools

import numpy as np

from tripletreid.embeddings.differences import difference
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks, ranking
from tripletreid.evaluation.bootstrap import interval
from tripletreid.evaluation.distances import Distances, shown, shown_up_to
from tripletreid.evaluation.pairs import BINS, Census, Plan, kept_bins
from tripletreid.evaluation.results import read_evaluation
from tripletreid.evaluation.workers import pool

RATES = [10.0 ** -exponent for exponent in range(1, 7)]
FEWEST_ERRORS = 10  # Impostor pairs that a rate must count at least.
CURVE_POINTS = 1000
HISTOGRAM_BINS = 100
SAMPLES = 16  # Parts of the sample of the gallery, whose spread is the error of the sample.
RANGE_QUERIES, RANGE_IMAGES = 256, 1024  # Their distances estimate the range of all distances.


@dataclasses.dataclass
class Pairs:
    """Distances of all pairs that the excluder does not ignore, as far as they are needed; in the metric's own unit.

    query, distance: genuine pairs, query by query and nearest first: number of the query int64 [M], distance float64 [M].
    impostor_pairs: number of impostor pairs.
    levels: float64 [L], ascending: distances of all genuine pairs, edges of the histogram, and requested thresholds.
    below, up_to: int64 [L], number of impostor pairs nearer than each level, and up to it.
    edges: edges of the histogram, float64 [HISTOGRAM_BINS + 1].
    nearest_errors: for each of RATES that at least FEWEST_ERRORS pairs reach: (rate, distance of the nearest impostor pair
        whose acceptance exceeds the rate, the next smaller distance of an impostor pair or None).
    """
    query: np.ndarray
    distance: np.ndarray
    impostor_pairs: int
    levels: np.ndarray
    below: np.ndarray
    up_to: np.ndarray
    edges: np.ndarray
    nearest_errors: list


def measure(retrieval, thresholds):
    """Rank the gallery for every query, and measure the distances of all pairs in the same pass.

    Args:
        retrieval: `Retrieval`.
        thresholds: distances up to which pairs are counted, float64 [n].

    Returns: `Ranks`, `Pairs`.

    Raises:
        InputError: as `ranking.rank`, or there are no pairs of different identities.
    """
    def census_of(plan):
        census = Census(plan)
        return census, ranking.rank(retrieval, census)

    queries, gallery, metric = retrieval.query_embeddings, retrieval.gallery_embeddings, retrieval.metric
    query_count, gallery_count = len(retrieval.query_set), len(retrieval.gallery_set)
    some = Distances(chunks.read_rows(queries, _spread(query_count, RANGE_QUERIES)), metric)
    rows = _spread(gallery_count, RANGE_IMAGES)
    chunk = some.prepare(rows, chunks.read_rows(gallery, rows))
    pairs = np.divmod(np.arange(len(some.queries) * len(rows)), len(rows))
    furthest = np.quantile(some.exact(pairs[0], chunk, pairs[1]), 0.999)
    edges = np.linspace(0, max(shown(furthest, metric), 1e-5), HISTOGRAM_BINS + 1)
    distances_of_matches, bins = _sample(retrieval, max(1.25 * furthest, 1e-20))
    levels = np.unique(np.concatenate([shown(distances_of_matches, metric), edges, thresholds]))
    below = shown_up_to(np.nextafter(levels, -np.inf), metric)
    low, high = np.where(below < 0, 0, np.nextafter(below, np.inf)), shown_up_to(levels, metric)
    kept = kept_bins(bins, RATES, query_count * gallery_count)
    census, ranks = census_of(Plan(low, high, 0.0, max(1.25 * furthest, 1e-20), kept))
    impostor_pairs = census.tally.pairs
    if not impostor_pairs:
        raise InputError('All pairs that the excluder leaves are of one identity: there is nothing to verify.')

    def exact(query, row):
        distances = Distances(chunks.read_rows(queries, query, block=256), metric)
        chunk = distances.prepare(row, chunks.read_rows(gallery, row, block=256))
        return distances.exact(np.arange(len(query)), chunk, np.arange(len(row)))

    tallies = [census.tally]

    def ranked(rank):
        tally = census.tally
        for tally in tallies:
            found = tally.ranked(rank, metric, exact)
            if found:
                return found
        tally = census.tally
        while True:  # The sample predicted wrong bins for this rank: another pass is needed, or several.
            tally = census_of(tally.next_plan(rank))[0].tally
            found = tally.ranked(rank, metric, exact)
            if found:
                tallies.append(tally)
                return found

    nearest_errors = []
    for exponent, rate in enumerate(RATES, 1):
        if impostor_pairs >= FEWEST_ERRORS * 10 ** exponent:
            first_error, nearer = ranked(impostor_pairs // 10 ** exponent)
            nearest_errors.append((rate, first_error, ranked(nearer - 1)[0] if nearer else None))
    query, distance = census.matches()
    return ranks, Pairs(query, shown(distance, metric), impostor_pairs, levels, *census.tally.counts(), edges,
                        nearest_errors)


def _spread(count, at_most):
    """Return evenly spaced numbers below `count`, at most `at_most`: int64."""
    number = min(count, at_most)
    return np.arange(number) * count // max(number, 1)


def _sample(retrieval, top):
    """Return distances of all matches, valid or ignored, float64; and histograms of non-matches, int64 [SAMPLES, BINS]."""
    query_set, gallery_set, gallery = retrieval.query_set, retrieval.gallery_set, retrieval.gallery_embeddings
    query_pids, gallery_pids = retrieval.numbered_pids
    most = max(1, chunks.CHUNK_NUMBERS // gallery.shape[1])
    rows = _spread(len(gallery_set), min(most, max(2048, len(gallery_set) // 16)))
    embs = chunks.read_rows(gallery, rows)
    fids = np.concatenate([gallery_set.fids[rows[some]] for some in chunks.slices(len(rows), chunks.RERANKED_AT_ONCE)])
    parts = [slice(number, None, SAMPLES) for number in range(min(SAMPLES, len(rows)))]
    tasks = [(embs[part], fids[part], gallery_pids[rows[part]]) for part in parts]
    bins = np.zeros((SAMPLES, BINS), np.int64)
    found = []
    with pool(retrieval.workers) as share:
        for block in ranking.query_blocks(query_pids, gallery_pids, chunks.QUERIES_AT_ONCE):
            distances = Distances(chunks.read(retrieval.query_embeddings, block.start, block.stop), retrieval.metric)
            found.append(ranking.matches_of(distances, query_pids[block], gallery, gallery_pids,
                                            np.zeros(len(gallery_pids), np.int8), 1).distance)
            histogram = functools.partial(_histogram, distances, query_set.fids[block], query_pids[block],
                                          retrieval.excluder, retrieval.batch_size, top)
            bins[:len(parts)] += list(share(histogram, tasks, 'Sample'))
    return np.concatenate(found), bins


def _histogram(distances, query_fids, query_pids, excluder, batch_size, top, images):
    """Count the distances of non-matches per bin from 0 to `top`, approximately: int64 [BINS].

    Args:
        images: embeddings, file ids and identities of some gallery images.
    """
    embs, fids, pids = images
    none = np.zeros(0)
    plan = Plan(none, none, 0.0, top, none)
    chunk = distances.prepare(np.arange(len(embs)), embs)
    excluded = excluder(fids)
    bins = np.zeros(BINS, np.int64)
    for some in chunks.slices(len(query_pids), batch_size):
        skipped = excluded(query_fids[some]) | (query_pids[some, None] == pids)
        approximate, _ = distances.approximate(np.arange(some.start, some.stop), chunk)
        pair_bins = plan.bins_of_pairs(np.maximum(approximate, 0, out=approximate), skipped)
        bins += np.bincount(pair_bins, minlength=BINS + 1)[:BINS]
    return bins


# --- Rates and thresholds ---------------------------------------------------------------------------------------------

def verification(pairs, query_pids):
    """Compute the verification of an evaluation, for its JSON file.

    Args:
        pairs: `Pairs`.
        query_pids: identities of the queries [Q].

    Returns: a dict: `genuine_pairs`, `impostor_pairs`, `auc`, `eer`, `tpr_at_fpr`, `curve` and `histogram`, as
        docs/verification.md describes them.
    """
    genuine = np.sort(pairs.distance)
    at_level = np.bincount(pairs.levels.searchsorted(genuine), minlength=len(pairs.levels))
    genuine_up_to = np.cumsum(at_level)
    count, others = len(genuine), pairs.impostor_pairs
    # A genuine and an impostor pair at the same distance count half. Integers are exact.
    in_order = sum(number * (2 * others - below - up_to) for number, below, up_to
                   in zip(at_level.tolist(), pairs.below.tolist(), pairs.up_to.tolist()) if number)
    points = []
    for rate, first_error, nearer in pairs.nearest_errors:
        mine = genuine[:genuine.searchsorted(first_error)]
        reached = [distance for distance in (nearer, *mine[-1:].tolist()) if distance is not None]
        points.append((rate, max(reached, default=None)))
    accepted = np.array([pairs.distance <= (-np.inf if threshold is None else threshold) for _, threshold in points])
    tpr_at_fpr = []
    if points:
        intervals = interval(query_pids[pairs.query], accepted.T.astype(float))
        tpr_at_fpr = [{'fpr': rate, 'tpr': float(mine.mean()), 'threshold': threshold, 'interval': ends}
                      for (rate, threshold), mine, ends in zip(points, accepted, intervals)]
    some = _curve_points(genuine_up_to, pairs.up_to)
    at_edges = pairs.levels.searchsorted(pairs.edges)
    return {
        'genuine_pairs': count,
        'impostor_pairs': others,
        'auc': in_order / (2 * count * others),
        'eer': _equal_error_rate(at_level / count, genuine_up_to / count, pairs.below / others, pairs.up_to / others),
        'tpr_at_fpr': tpr_at_fpr,
        'curve': {'fpr': (pairs.up_to[some] / others).tolist(), 'tpr': (genuine_up_to[some] / count).tolist(),
                  'threshold': pairs.levels[some].tolist()},
        'histogram': {'edges': pairs.edges.tolist(), 'genuine': _in_bins(genuine_up_to[at_edges], count),
                      'impostor': _in_bins(pairs.up_to[at_edges], others)},
    }


def at_threshold(pairs, query_pids, threshold):
    """Return `threshold`, `tpr` with its `interval` and `fpr` at a threshold, for the JSON file."""
    accepted = pairs.distance <= threshold
    (ends,) = interval(query_pids[pairs.query], accepted[:, None].astype(float))
    level = pairs.levels.searchsorted(threshold)
    return {'threshold': threshold, 'tpr': float(accepted.mean()), 'interval': ends,
            'fpr': int(pairs.up_to[level]) / pairs.impostor_pairs}


def _equal_error_rate(at_level, tpr, fpr_below, fpr):
    """Return the equal error rate: the FPR where the ROC, linear between its points, has FPR = 1 - TPR."""
    x = np.concatenate([[0], np.stack([fpr_below, fpr], axis=1).ravel(), [1]])
    y = np.concatenate([[0], np.stack([tpr - at_level, tpr], axis=1).ravel(), [1]])
    excess = x + y - 1
    after = int(np.argmax(excess >= 0))
    part = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(x[after - 1] + part * (x[after] - x[after - 1]))


def _curve_points(genuine_up_to, up_to):
    """Choose the levels of the stored curve, int64 [at most CURVE_POINTS], ascending.

    Most are spaced by equal ratios of FPR, a few by TPR.
    """
    most = int(up_to[-1])
    few = CURVE_POINTS // 10
    by_fpr = up_to.searchsorted(np.geomspace(1, max(most, 1), CURVE_POINTS - few - 2), 'right') - 1
    by_tpr = genuine_up_to.searchsorted(np.linspace(0, genuine_up_to[-1], few))
    last = [len(up_to) - 1, max(0, int(up_to.searchsorted(1)) - 1)]
    return np.unique(np.concatenate([np.maximum(by_fpr, 0), by_tpr, last]))


def _in_bins(up_to_edges, count):
    """Count pairs per bin, given the counts up to each edge; the last bin also holds all further pairs."""
    up_to = np.append(up_to_edges[1:-1], count)
    return np.diff(up_to, prepend=0).tolist()


# --- Read back --------------------------------------------------------------------------------------------------------

def threshold_at(path, fpr, metric=None):
    """Read the operating point of an evaluation at a false positive rate.

    Args:
        path: JSON file of `evaluate.py --verification`.
        fpr: one of the rates that it has, from 1e-1 to 1e-6.
        metric: metric that the threshold must be for; None: any.

    Returns: `OperatingPoint`, its `fpr` as in the list.

    Raises:
        InputError: no such file, one without verification or of another metric, a rate that it does not have, or no
            threshold at that rate.
    """
    verification = verification_of(path, metric)
    points = {f'{point.fpr:.0e}': point for point in verification.tpr_at_fpr}
    point = points.get(f'{fpr:.0e}')
    if point is None or abs(point.fpr - fpr) > 1e-9 * fpr:
        has = f'it has thresholds at {", ".join(points)}' if points else 'it has no threshold at all'
        raise InputError(f'{path} has no threshold at an FPR of {fpr:g}: with {verification.impostor_pairs} impostor pairs '
                         f'{has}.')
    if point.threshold is None:
        raise InputError(f'{path} has no threshold at an FPR of {fpr:g}: a larger fraction of impostor pairs is as near as '
                         f'the nearest pair.')
    return point


def threshold_at_far(path, far, metric=None):
    """Read the open-set operating point of an evaluation at a false alarm rate.

    Args:
        path: JSON file of `evaluate.py --verification` with queries without a match.
        far: one of the rates that it has, from 1e-1 on.
        metric: metric that the threshold must be for; None: any.

    Returns: `OpenSetPoint`.

    Raises:
        InputError: as `threshold_at`, or every query of the evaluation has a match.
    """
    points = verification_of(path, metric).dir_at_far
    if not points:
        raise InputError(f'{path} has no open-set identification, because all of its queries have a match: evaluate again '
                         f'with --hold_out.')
    point = next((point for point in points if abs(point.far - far) <= 1e-9 * far), None)
    if point is None or point.threshold is None:
        has = ', '.join(f'{point.far:.0e}' for point in points if point.threshold is not None) or 'no FAR'
        raise InputError(f'{path} has no threshold at a FAR of {far:g}: it has thresholds at {has}.')
    return point


def doubt(path, made_by):
    """Return a sentence if an evaluation's thresholds may not hold for other embeddings, made differently; else None.

    Args:
        path: as in `threshold_at`.
        made_by: parameters of the other embeddings, as `differences.differences` takes them.
    """
    for parameters in read_evaluation(path).made_with.values():
        how = difference(parameters, made_by)
        if how:
            return (f'{path} is of embeddings that were made with {how} than the embeddings here: its threshold may not '
                    f'hold for them.')
    return None


def operating_points(path, metric=None):
    """Read the points of an evaluation's ROC, nearest first: a list of `OperatingPoint`, at most a thousand.

    Each is exact for the pairs of the evaluation. Between two thresholds both rates lie between theirs.

    Raises:
        InputError: as `threshold_at`.
    """
    return verification_of(path, metric).curve


def verification_of(path, metric=None):
    """Read the `Verification` in an evaluation's JSON file.

    Raises:
        InputError: as `threshold_at`.
    """
    evaluation = read_evaluation(path)
    if evaluation.verification is None:
        raise InputError(f'{path} has no verification: evaluate again with --verification.')
    file_metric = evaluation.parameters['metric']
    if metric not in (None, file_metric):
        raise InputError(f'{path} has thresholds for the {file_metric} distance, and here the distance is {metric}.')
    return evaluation.verification

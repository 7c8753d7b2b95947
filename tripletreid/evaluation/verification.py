"""Are two images of one person? Which distance means it, and how often that errs."""
import dataclasses
import functools

import numpy as np

from tripletreid.embeddings.differences import difference
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks, neighbours, ranking
from tripletreid.evaluation.bootstrap import interval
from tripletreid.evaluation.distances import Distances, shown, shown_up_to
from tripletreid.evaluation.pairs import BINS, Census, Plan, kept_bins
from tripletreid.evaluation.results import read_evaluation
from tripletreid.evaluation.workers import pool

RATES = [10.0 ** -exponent for exponent in range(1, 7)]
FEWEST_ERRORS = 10  # Pairs that a rate must be of.
CURVE_POINTS = 1000
HISTOGRAM_BINS = 100
SAMPLES = 16  # Parts of the sample of the gallery; how much they differ tells how well it tells.
RANGE_QUERIES, RANGE_IMAGES = 256, 1024  # From their distances the range of all is judged.


@dataclasses.dataclass
class Pairs:
    """The distances of all pairs that the excluder leaves, as far as they are needed; in the metric's own unit.

    query, distance: of the pairs of one identity, query by query and nearest first: number of the query int64 [M], and
        distance float64 [M].
    impostor_pairs: how many pairs are of different identities.
    levels: float64 [L], ascending: all distances of pairs of one identity, the histogram's edges, and what was asked for.
    below, up_to: int64 [L], how many pairs of different identities are nearer than each level, and up to it.
    edges: of the histogram, float64 [HISTOGRAM_BINS + 1].
    nearest_errors: for each of RATES, of which FEWEST_ERRORS pairs are a share, (rate, distance of the nearest pair of
        different identities with which their share exceeds the rate, and the largest distance that is smaller and that
        such a pair has, or None).
    """
    query: np.ndarray
    distance: np.ndarray
    impostor_pairs: int
    levels: np.ndarray
    below: np.ndarray
    up_to: np.ndarray
    edges: np.ndarray
    nearest_errors: list


def measure(queries, query_set, gallery, gallery_set, thresholds, how):
    """Rank the gallery for every query, and learn of the distances of all pairs in the same pass.

    Args:
        queries, query_set, gallery, gallery_set: as for `ranking.rank`.
        thresholds: distances up to which pairs shall be counted, float64 [n].
        how: the other arguments of `ranking.rank`, a dict.

    Returns: `Ranks`, `Pairs`.

    Raises:
        InputError: as `ranking.rank`, or there are no pairs of different identities.
    """
    def census_of(plan):
        census = Census(plan)
        return census, ranking.rank(queries, query_set, gallery, gallery_set, census=census, **how)

    metric = how['metric']
    some = Distances(chunks.read_rows(queries, _spread(len(query_set), RANGE_QUERIES)), metric)
    rows = _spread(len(gallery_set), RANGE_IMAGES)
    chunk = some.prepare(rows, chunks.read_rows(gallery, rows))
    pairs = np.divmod(np.arange(len(some.queries) * len(rows)), len(rows))
    furthest = np.quantile(some.exact(pairs[0], chunk, pairs[1]), 0.999)
    edges = np.linspace(0, max(shown(furthest, metric), 1e-5), HISTOGRAM_BINS + 1)
    distances_of_matches, bins = _sample(queries, query_set, gallery, gallery_set, how, max(1.25 * furthest, 1e-20))
    levels = np.unique(np.concatenate([shown(distances_of_matches, metric), edges, thresholds]))
    below = shown_up_to(np.nextafter(levels, -np.inf), metric)
    low, high = np.where(below < 0, 0, np.nextafter(below, np.inf)), shown_up_to(levels, metric)
    kept = kept_bins(bins, RATES, len(query_set) * len(gallery_set))
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
        while True:  # The sample was wrong about this rank: another pass is needed, or several.
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
    """Numbers below `count`, `at_most` of them or all, at equal distances: int64."""
    number = min(count, at_most)
    return np.arange(number) * count // max(number, 1)


def _sample(queries, query_set, gallery, gallery_set, how, top):
    """Distances of all matches, valid or not, float64; and histograms of others in a sample, int64 [SAMPLES, BINS]."""
    query_pids, gallery_pids = ranking.numbered(query_set, gallery_set)
    most = max(1, chunks.CHUNK_NUMBERS // gallery.shape[1])
    rows = _spread(len(gallery_set), min(most, max(2048, len(gallery_set) // 16)))
    embs = chunks.read_rows(gallery, rows)
    fids = np.concatenate([gallery_set.fids[rows[some]] for some in chunks.slices(len(rows), chunks.RERANKED_AT_ONCE)])
    parts = [slice(number, None, SAMPLES) for number in range(min(SAMPLES, len(rows)))]
    tasks = [(embs[part], fids[part], gallery_pids[rows[part]]) for part in parts]
    bins = np.zeros((SAMPLES, BINS), np.int64)
    found = []
    with pool(how['workers']) as share:
        for block in ranking.query_blocks(query_pids, gallery_pids, chunks.QUERIES_AT_ONCE):
            distances = Distances(chunks.read(queries, block.start, block.stop), how['metric'])
            found.append(ranking.matches_of(distances, query_pids[block], gallery, gallery_pids,
                                            np.zeros(len(gallery_pids), np.int8), 1).distance)
            histogram = functools.partial(_histogram, distances, query_set.fids[block], query_pids[block],
                                          how['excluder'], how['batch_size'], top)
            bins[:len(parts)] += list(share(histogram, tasks, 'Sample'))
    return np.concatenate(found), bins


def _histogram(distances, query_fids, query_pids, excluder, batch_size, top, images):
    """How many distances of strangers are about in each bin from 0 to `top`, int64 [BINS], given the embeddings, file ids
    and identities of some images."""
    embs, fids, pids = images
    none = np.zeros(0)
    plan = Plan(none, none, 0.0, top, none)
    chunk = distances.prepare(np.arange(len(embs)), embs)
    excluded = excluder(fids)
    bins = np.zeros(BINS, np.int64)
    for some in chunks.slices(len(query_pids), batch_size):
        passed_over = excluded(query_fids[some]) | (query_pids[some, None] == pids)
        approximate, _ = distances.approximate(np.arange(some.start, some.stop), chunk)
        of_pairs = plan.bins_of_pairs(np.maximum(approximate, 0, out=approximate), passed_over)
        bins += np.bincount(of_pairs, minlength=BINS + 1)[:BINS]
    return bins


# --- What follows from them -------------------------------------------------------------------------------------------

def verification(pairs, query_pids):
    """The verification of an evaluation, for its JSON file.

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
    # Of a pair of one identity and another at the same distance half a pair counts as in order. Integers are exact.
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
    """What a threshold does to the pairs: `threshold`, `tpr` with its `interval`, and `fpr`, for the JSON file."""
    accepted = pairs.distance <= threshold
    (ends,) = interval(query_pids[pairs.query], accepted[:, None].astype(float))
    level = pairs.levels.searchsorted(threshold)
    return {'threshold': threshold, 'tpr': float(accepted.mean()), 'interval': ends,
            'fpr': int(pairs.up_to[level]) / pairs.impostor_pairs}


def _equal_error_rate(at_level, tpr, fpr_below, fpr):
    """Where the ROC, straight between its points, has as large a share of impostors accepted as of genuine refused."""
    x = np.concatenate([[0], np.stack([fpr_below, fpr], axis=1).ravel(), [1]])
    y = np.concatenate([[0], np.stack([tpr - at_level, tpr], axis=1).ravel(), [1]])
    excess = x + y - 1
    behind = int(np.argmax(excess >= 0))
    part = -excess[behind - 1] / (excess[behind] - excess[behind - 1])
    return float(x[behind - 1] + part * (x[behind] - x[behind - 1]))


def _curve_points(genuine_up_to, up_to):
    """Levels that the curve is drawn through, int64 [at most CURVE_POINTS], ascending: by FPR in steps of equal ratio,
    and a few by TPR."""
    most = int(up_to[-1])
    few = CURVE_POINTS // 10
    by_fpr = up_to.searchsorted(np.geomspace(1, max(most, 1), CURVE_POINTS - few - 2), 'right') - 1
    by_tpr = genuine_up_to.searchsorted(np.linspace(0, genuine_up_to[-1], few))
    last = [len(up_to) - 1, max(0, int(up_to.searchsorted(1)) - 1)]
    return np.unique(np.concatenate([np.maximum(by_fpr, 0), by_tpr, last]))


def _in_bins(up_to_edges, count):
    """How many of `count` are in each bin, given how many are up to each edge; the last bin has all that are further."""
    up_to = np.append(up_to_edges[1:-1], count)
    return np.diff(up_to, prepend=0).tolist()


# --- Open set ---------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class FirstPlaces:
    """The nearest images of queries.

    right: float64 [Q], distance of the nearest image of matched queries, infinite where it is of another identity.
    wrong: float64 [U], of unmatched queries, infinite where the excluder leaves no image.
    """
    right: np.ndarray
    wrong: np.ndarray


def first_places(pairs, ranks, queries, query_set, gallery, gallery_set, how):
    """The `FirstPlaces` of all queries, given what `measure` returns and was given."""
    right = np.full(len(query_set), np.inf)
    np.minimum.at(right, pairs.query, pairs.distance)
    right[ranks.first_match_rank != 1] = np.inf
    unmatched = np.flatnonzero(~ranks.matched)
    if not len(unmatched):
        return FirstPlaces(right[ranks.matched], np.zeros(0))
    found = neighbours.nearest(chunks.read_rows(queries, unmatched), query_set.fids[unmatched], gallery, gallery_set.fids, 1,
                               how['metric'], how['excluder'], batch_size=how['batch_size'], workers=how['workers'])
    wrong = np.where(found.rows[:, 0] >= 0, found.distances[:, 0], np.inf)
    return FirstPlaces(right[ranks.matched], np.sort(wrong))


def open_set(places):
    """Identification of persons who may not be in the gallery, for the JSON file (Grother et al. 2019, Phillips et al.
    2011): DIR, the share of matched queries whose nearest image is right and within the threshold, by FAR, the share of
    unmatched queries that have any image within it."""
    count = len(places.wrong)
    distances = np.concatenate([places.right, places.wrong])
    points = []
    for exponent, rate in enumerate(RATES, 1):
        if exponent == 1 or count >= 10 ** exponent:
            first_error = places.wrong[count // 10 ** exponent]
            threshold = max(distances[distances < first_error].tolist(), default=None)
            points.append({'far': rate, 'dir': _identified(places, threshold), 'threshold': threshold})
    return {'queries': len(places.right), 'unmatched_queries': count, 'dir_at_far': points}


def open_set_at(places, threshold):
    """`dir` and `far` at a threshold, for the JSON file."""
    return {'dir': _identified(places, threshold), 'far': float((places.wrong <= threshold).mean())}


def _identified(places, threshold):
    return 0.0 if threshold is None else float((places.right <= threshold).mean())


# --- Read back --------------------------------------------------------------------------------------------------------

def threshold_at(path, fpr, metric=None):
    """The operating point of an evaluation at a false positive rate.

    Args:
        path: JSON file of `evaluate.py --verification`.
        fpr: one of the rates that it has, from 1e-1 to 1e-6.
        metric: of the distances that the threshold is for, if that is to be checked.

    Returns: `OperatingPoint`, its `fpr` that of the list.

    Raises:
        InputError: no such file, one without verification or of another metric, a rate that it does not have, or no
            threshold at that rate.
    """
    verification = verification_of(path, metric)
    points = {f'{point.fpr:.0e}': point for point in verification.tpr_at_fpr}
    point = points.get(f'{fpr:.0e}')
    if point is None or abs(point.fpr - fpr) > 1e-9 * fpr:
        has = f'it has those at {", ".join(points)}' if points else 'it has none at all'
        raise InputError(f'{path} has no threshold at an FPR of {fpr:g}: with {verification.impostor_pairs} pairs of '
                         f'different identities {has}.')
    if point.threshold is None:
        raise InputError(f'{path} has no threshold at an FPR of {fpr:g}: more pairs of different identities than that '
                         f'are as near as the nearest of all.')
    return point


def doubt(path, made_by):
    """Why the thresholds of an evaluation need not hold for other embeddings, a sentence; None where they were made alike.

    Args:
        path: as in `threshold_at`.
        made_by: what the other embeddings depend on, see `embeddings.difference`.
    """
    for parameters in read_evaluation(path).made_with:
        how = difference(parameters, made_by)
        if how:
            return (f'{path} is of embeddings that were made with {how} than those here: its threshold need not hold for '
                    f'them.')
    return None


def operating_points(path, metric=None):
    """The points of an evaluation's ROC, nearest first: a list of `OperatingPoint`, at most a thousand.

    Each is exact: of the pairs in the evaluation the shares `tpr` and `fpr` are as near as `threshold` or nearer.
    Between two thresholds both shares lie between those of the two.

    Raises:
        InputError: as `threshold_at`.
    """
    return verification_of(path, metric).curve


def verification_of(path, metric=None):
    """The `Verification` in an evaluation's JSON file.

    Raises:
        InputError: as `threshold_at`.
    """
    evaluation = read_evaluation(path)
    if evaluation.verification is None:
        raise InputError(f'{path} has no verification: evaluate again with --verification.')
    of_file = evaluation.parameters['metric']
    if metric not in (None, of_file):
        raise InputError(f'{path} has thresholds for the {of_file} distance, and here the distance is {metric}.')
    return evaluation.verification

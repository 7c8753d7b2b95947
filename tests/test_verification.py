"""Verification and open set: scikit-learn on all pairs, naive loops, and every way to divide the work."""
import json
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from conftest import assert_one_sentence, run_script
from test_evaluate import arguments, evaluate, read, write_dataset, write_set
from test_ranking import KINDS, as_rows, cases, distances_of, make_dataset, make_embeddings
from tripletreid import exclusion
from tripletreid.dataset import Dataset
from tripletreid.errors import InputError
from tripletreid.evaluation import bootstrap, chunks, open_set, pairs, ranking, verification
from tripletreid.evaluation.distances import shown, shown_up_to
from tripletreid.evaluation.retrieval import Retrieval

METRICS = 'cityblock', 'cosine', 'euclidean', 'sqeuclidean'  # Those that a test has a formula of its own for.


@st.composite
def problems(draw):
    random = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    query_count, gallery_count, dim = draw(st.integers(2, 15)), draw(st.integers(5, 60)), draw(st.integers(1, 5))
    kind, metric = draw(st.sampled_from(KINDS)), draw(st.sampled_from(METRICS))
    queries, gallery = (make_embeddings(kind, count, dim, random) for count in (query_count, gallery_count))
    if metric == 'cosine':
        queries[~queries.any(axis=1)] = 1
        gallery[~gallery.any(axis=1)] = 1
    query_set, gallery_set = make_dataset(query_count, random), make_dataset(gallery_count, random)
    excluder = exclusion.load(draw(st.sampled_from(('market1501', 'diagonal'))))
    exact = np.stack([distances_of(query, gallery, metric) for query in queries])
    distances = shown(exact, metric)
    valid = ~excluder(gallery_set.fids)(query_set.fids)
    same = query_set.pids[:, None] == gallery_set.pids
    hypothesis.assume((valid & same).any() and (valid & ~same).any())
    sizes = {'GALLERY_AT_ONCE': draw(st.sampled_from((4, 1000))), 'QUERIES_AT_ONCE': draw(st.sampled_from((3, 1000))),
             'MATCHES_AT_ONCE': draw(st.sampled_from((10, 1000))), 'IMAGES_OF_A_TILE': draw(st.sampled_from((3, 1024)))}
    # Small ones make for many passes, many bins of which each holds many pairs, and bins that are made finer.
    limits = {'BINS': draw(st.sampled_from((8, 1 << 15))),
              'INSPECTED_AT_ONCE': draw(st.sampled_from((1, 1 << 20))),
              'MEASURED_AT_MOST': draw(st.sampled_from((0, 1 << 15)))}
    return {'args': (queries, query_set, gallery, gallery_set), 'metric': metric, 'excluder': excluder, 'valid': valid,
            'distances': distances[valid], 'same': same[valid], 'all_distances': distances, 'all_same': same,
            'exact': exact, 'sizes': sizes, 'limits': limits, 'batch_size': draw(st.sampled_from((1, 2, 256)))}


def retrieval_of(problem, workers=1):
    return Retrieval(*problem['args'], problem['excluder'], problem['metric'], problem['batch_size'], workers)


def measured(problem, thresholds=(), workers=1):
    with mock.patch.multiple(chunks, **problem['sizes']), mock.patch.multiple(pairs, **problem['limits']), \
            mock.patch.object(verification, 'BINS', problem['limits']['BINS']):
        return verification.measure(retrieval_of(problem, workers), thresholds)


@cases(60)
@hypothesis.given(problems())
def test_verification_is_that_of_scikit_learn(problem):
    distances, same = problem['distances'], problem['same']
    asked = float(np.median(distances))
    ranks, found = measured(problem, [asked])
    query_pids = problem['args'][1].pids
    result = verification.verification(found, query_pids)
    impostors = int((~same).sum())
    assert result['genuine_pairs'] == same.sum() and result['impostor_pairs'] == impostors
    # Only the order of distances, because scikit-learn compares scores in float32 precision in some places.
    level, scores = np.unique(distances, return_inverse=True)
    assert result['auc'] == pytest.approx(roc_auc_score(same, -scores), abs=1e-12)
    fpr, tpr, at_level = roc_curve(same, -scores, drop_intermediate=False)
    assert [point['fpr'] for point in result['tpr_at_fpr']] == [rate for rate in verification.RATES
                                                                if rate * impostors > 10 - 1e-6]
    for point in result['tpr_at_fpr']:
        last = np.flatnonzero(fpr <= point['fpr'])[-1]
        assert point['threshold'] == (None if last == 0 else level[-int(at_level[last])])
        assert point['tpr'] == pytest.approx(tpr[last], abs=1e-12)
    curve = result['curve']
    for x, y, threshold in zip(curve['fpr'], curve['tpr'], curve['threshold'], strict=True):
        assert x == (distances[~same] <= threshold).mean() and y == (distances[same] <= threshold).mean()
    here = verification.at_threshold(found, query_pids, asked)
    assert here['fpr'] == (distances[~same] <= asked).mean() and here['tpr'] == (distances[same] <= asked).mean()
    edges = np.array(result['histogram']['edges'])
    for kind, values in (('genuine', distances[same]), ('impostor', distances[~same])):
        in_bin = np.minimum(np.searchsorted(edges[1:], values), len(edges) - 2)
        assert result['histogram'][kind] == np.bincount(in_bin, minlength=len(edges) - 1).tolist()

    # Where the ROC, straight between its points, is as far from the left as from the top.
    crossing = np.interp(0, fpr + tpr - 1, fpr)
    assert result['eer'] == pytest.approx(crossing, abs=1e-12)
    # Precise distances rank as the others do.
    np.testing.assert_array_equal(as_rows(ranks), as_rows(ranking.rank(retrieval_of(problem))))


@cases(20)
@hypothesis.given(problems())
def test_open_set_is_that_of_a_loop(problem):
    ranks, found = measured(problem)
    places = open_set.first_places(found, ranks, retrieval_of(problem))
    right, wrong = [], []
    for exact, distances, same, valid in zip(*(problem[name] for name in ('exact', 'all_distances', 'all_same', 'valid'))):
        nearest = min(distances[valid], default=np.inf)
        if (same & valid).any():
            # Images are ranked by exact distances, which rounding to the metric's unit can make equal.
            first = np.argmin(np.where(valid, exact, np.inf))
            right.append(nearest if same[first] else np.inf)
        else:
            wrong.append(nearest)
    assert places.right.tolist() == right and places.wrong.tolist() == sorted(wrong)
    if not wrong:
        return
    (point, *others) = open_set.open_set(places)['dir_at_far']
    assert not others and point['far'] == 0.1
    possible = [distance for distance in {*right, *wrong} if np.mean(np.array(wrong) <= distance) <= 0.1
                and np.isfinite(distance)]
    assert point['threshold'] == max(possible, default=None)
    threshold = -1 if point['threshold'] is None else point['threshold']
    assert point['dir'] == np.mean(np.array(right) <= threshold)
    assert open_set.open_set_at(places, threshold)['far'] == np.mean(np.array(wrong) <= threshold)


def scene(query_count=40, gallery_count=1200):
    random = np.random.default_rng(3)
    queries, gallery = (np.round(random.standard_normal((count, 8)), 1).astype(np.float32)
                        for count in (query_count, gallery_count))
    return queries, make_dataset(query_count, random), gallery, make_dataset(gallery_count, random)


@pytest.mark.parametrize('metric', METRICS)
def test_thresholds_are_those_of_a_loop_and_no_division_of_the_work_changes_a_bit(metric):
    queries, query_set, gallery, gallery_set = args = scene()
    problem = {'args': args, 'excluder': exclusion.load('market1501'), 'metric': metric, 'batch_size': 256,
               'sizes': {'GALLERY_AT_ONCE': chunks.GALLERY_AT_ONCE}, 'limits': {'BINS': pairs.BINS}}

    def result(**changed):
        workers = changed.pop('workers', 1)
        ranks, found = measured({**problem, **changed}, workers=workers)
        return verification.verification(found, query_set.pids)

    expected = result()
    others = [{'sizes': {'GALLERY_AT_ONCE': 700, 'QUERIES_AT_ONCE': 64}, 'batch_size': 50},
              {'limits': {'BINS': 64, 'KEPT_AT_MOST': 1000, 'MEASURED_AT_MOST': 0}}]
    if metric == 'euclidean':
        others.append({'workers': 2})
    for changed in others:
        assert result(**changed) == expected

    distances = np.stack([shown(distances_of(query, gallery, metric), metric) for query in queries])
    valid = ~problem['excluder'](gallery_set.fids)(query_set.fids)
    same = query_set.pids[:, None] == gallery_set.pids
    impostors = np.sort(distances[valid & ~same])
    assert len(expected['tpr_at_fpr']) == 3
    for exponent, point in enumerate(expected['tpr_at_fpr'], 1):
        allowed = len(impostors) // 10 ** exponent
        occurring = np.unique(distances[valid])
        below = [distance for distance in occurring if impostors.searchsorted(distance, 'right') <= allowed]
        assert point['threshold'] == below[-1]
        pids = np.broadcast_to(query_set.pids[:, None], same.shape)[valid & same]
        accepted = (distances <= point['threshold'])[valid & same]
        # Pairs of one query are summed up in another order.
        assert point['interval'] == pytest.approx(bootstrap.interval(pids, accepted[:, None].astype(float))[0])


def test_a_sample_that_misleads_costs_another_pass_and_no_digit():
    """The gallery's sample has none of the images that are near."""
    args = queries, query_set, gallery, gallery_set = scene(20, 4000)
    gallery[np.setdiff1d(np.arange(4000), verification._spread(4000, 2048))] *= 0.1
    problem = {'args': args, 'excluder': exclusion.load('market1501'), 'metric': 'euclidean', 'batch_size': 256,
               'sizes': {'GALLERY_AT_ONCE': chunks.GALLERY_AT_ONCE}, 'limits': {'BINS': pairs.BINS}}
    with mock.patch.object(ranking, 'rank', side_effect=ranking.rank) as rank:
        _, found = measured(problem)
    assert 2 <= rank.call_count <= 8
    distances = np.stack([shown(distances_of(query, gallery, 'euclidean'), 'euclidean') for query in queries])
    valid = ~problem['excluder'](gallery_set.fids)(query_set.fids) & (query_set.pids[:, None] != gallery_set.pids)
    impostors = np.sort(distances[valid])
    for exponent, (_, first_error, nearer) in enumerate(found.nearest_errors, 1):
        allowed = len(impostors) // 10 ** exponent
        assert first_error == impostors[allowed] and nearer == impostors[impostors < first_error].max()


@pytest.mark.parametrize('bottom', [0.0, 3.0])
def test_a_bin_of_float32_gives_the_side_of_a_level(bottom):
    """For distances as inexact as can be tolerated, beyond the bins too."""
    random = np.random.default_rng(0)
    for top in random.uniform(4, 2000, 200):
        levels = np.sort(random.uniform(bottom, 1.2 * top, 5))
        plan = pairs.Plan(levels, levels, bottom, top, np.zeros(pairs.BINS, bool))
        near = levels + 4 * plan.tolerable * random.uniform(-1, 1, (100, 5))
        exact = np.append(random.uniform(0, 2 * top, 1000), near)
        inexact = exact + plan.tolerable * random.uniform(-1, 1, len(exact))
        bins = plan.bins_of(np.maximum(inexact, 0).astype(np.float32 if bottom == 0 else np.float64))
        sure = ~plan.inspected[bins]
        assert sure.any() and bins.max() == pairs.BINS - 1
        np.testing.assert_array_equal(bins[sure, None] < plan.bins_of(levels), exact[sure, None] < levels)


@pytest.mark.parametrize('metric', METRICS)
def test_largest_distances_that_are_shown_as_at_most_one(metric):
    exact = np.array([0, 1e-30, 1e-13, 0.3, 2, 1e9])
    largest = shown_up_to(shown(exact, metric), metric)
    assert (largest >= exact).all() and (shown(largest, metric) == shown(exact, metric)).all()
    assert (shown(np.nextafter(largest, np.inf), metric) > shown(exact, metric)).all()
    assert shown_up_to(np.array([-1.0]), metric) == -1


# --- As a user runs it ------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp('verified')
    write_set(folder, 'query', 60, 15, seed=1)
    write_set(folder, 'test', 300, 12, seed=2, junk=30)
    return folder


@pytest.fixture(scope='module')
def verified(market):
    stdout, _, results = evaluate(market, '--verification', '--by_camera')
    (market / 'results.json').rename(market / 'verified.json')
    return stdout, results


def test_json_and_table(market, verified):
    stdout, results = verified
    _, _, plain = evaluate(market)
    more = {'verification', 'open_set', 'by_camera', 'parameters'}
    assert {key: value for key, value in results.items() if key not in more} \
        == {key: value for key, value in plain.items() if key not in more}
    found = results['verification']
    assert f'AUC {found["auc"]:.4%}' in stdout and ' 0.1%' in stdout and '14 without' in stdout
    assert [point['far'] for point in results['open_set']['dir_at_far']] == [0.1]
    points = verification.operating_points(market / 'verified.json')
    assert [point.fpr for point in points] == found['curve']['fpr'] and len(points) <= 1000
    assert verification.threshold_at(market / 'verified.json', 0.01, 'euclidean')[1:] \
        == (found['tpr_at_fpr'][1]['tpr'], found['tpr_at_fpr'][1]['threshold'])


def test_a_threshold_applied_elsewhere(market, verified, tmp_path):
    write_set(tmp_path, 'query', 40, 15, seed=5)
    gallery = write_set(tmp_path, 'test', 200, 12, seed=6)
    stdout, _, results = evaluate(tmp_path, '--threshold_from', market / 'verified.json', '--fpr', '1e-2', '--workers', '2')
    here, chosen = results['threshold_applied'], verified[1]['verification']['tpr_at_fpr'][1]
    queries = read(tmp_path, 'query')
    distances = np.stack([shown(distances_of(query, gallery[1], 'euclidean'), 'euclidean') for query in queries[1]])
    valid = ~exclusion.load('market1501')(gallery[0].fids)(queries[0].fids)
    same = queries[0].pids[:, None] == gallery[0].pids
    assert here['threshold'] == chosen['threshold'] and here['chosen_at_fpr'] == 0.01
    assert here['tpr'] == (distances[valid & same] <= here['threshold']).mean()
    assert here['fpr'] == (distances[valid & ~same] <= here['threshold']).mean()
    assert f'FPR {here["fpr"]:.4%}, TPR {here["tpr"]:.2%} here' in stdout and 0 <= here['far'] <= 1


def test_a_threshold_of_embeddings_that_were_made_differently(market, verified, tmp_path):
    """The difference is reported; a missing property of a file is no difference."""
    content = verified[1]
    assert verification.doubt(market / 'verified.json', {'checkpoint_sha256': 'a', 'weights': None}) is None
    made = {'checkpoint_sha256': 'a', 'weights': None, 'crop_augment': 'five', 'filename': 'x.h5'}
    path = tmp_path / 'made.json'
    path.write_text(json.dumps({**content, 'embedding_parameters': {'query': {}, 'gallery': made}}))
    for made_by, how in (({'checkpoint_sha256': 'b'}, 'another checkpoint'), ({'weights': 'raw'}, 'other weights'),
                         ({'checkpoint_sha256': 'a', 'crop_augment': None}, 'other test-time augmentation')):
        assert f'{path} is of embeddings that were made with {how}' in verification.doubt(path, made_by)
    assert verification.doubt(path, {'checkpoint_sha256': 'a', 'weights': None, 'crop_augment': 'five'}) is None
    path.write_text(json.dumps({**content, 'embedding_parameters': {'query': 'a'}}))
    with pytest.raises(InputError, match='made.json is not an evaluation'):
        verification.doubt(path, {})


def test_bad_input(market, verified, tmp_path):
    evaluate(market)
    has = market / 'verified.json'
    for path, fpr, metric, part in ((market / 'results.json', 0.01, None, 'has no verification: evaluate again'),
                                    (has, 1e-6, None, 'it has thresholds at 1e-01, 1e-02, 1e-03'),
                                    (has, 0.02, None, 'no threshold at an FPR of 0.02'),
                                    (has, 0.01, 'cosine', 'thresholds for the euclidean distance')):
        with pytest.raises(InputError, match=part):
            verification.threshold_at(path, fpr, metric)
    content = json.loads(has.read_text())
    for change in ({'curve': {'fpr': [1, 0], 'tpr': [0, 0], 'threshold': [0, 0]}}, {'auc': 'x'}, {'tpr_at_fpr': 3},
                   {'histogram': {'edges': [0], 'genuine': [], 'impostor': []}}):
        changed = {**content, 'verification': {**content['verification'], **change}}
        (tmp_path / 'changed.json').write_text(json.dumps(changed))
        with pytest.raises(InputError, match='changed.json is not an evaluation'):
            verification.operating_points(tmp_path / 'changed.json')
    for more, part in ((('--verification', '--rerank'), 'remove --rerank'),
                       (('--fpr', '0.1'), 'needs --threshold_from'),
                       (('--threshold_from', tmp_path / 'none.json'), 'none.json')):
        assert_one_sentence(run_script('evaluate.py', *arguments(market, *more)), part)


def test_no_pair_of_two_identities(tmp_path):
    fids = np.array([f'1_c{camera}s1_{number}.jpg' for number, camera in enumerate((1, 2, 3))], object)
    dataset = Dataset('one', np.array(['1'] * 3, object), fids)
    for name in ('query', 'test'):
        write_dataset(tmp_path, name, dataset, np.eye(3, dtype=np.float32))
    assert_one_sentence(run_script('evaluate.py', *arguments(tmp_path, '--verification')), 'nothing to verify')

"""Ranks, average precisions and neighbours against brute force; re-ranking against the paper's dense form."""
from unittest import mock

import h5py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tripletreid import exclusion
from tripletreid.dataset import Dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation import chunks, distances, neighbours, ranking, reranking
from tripletreid.evaluation.distances import Distances
from tripletreid.evaluation.reranking import k_reciprocal
from tripletreid.evaluation.retrieval import Retrieval

METRICS = 'cityblock', 'cosine', 'euclidean', 'sqeuclidean'  # Those that a test has a formula of its own for.

KINDS = ('grid', 'normal', 'far from zero', 'few points', 'tiny', 'huge', 'two scales', 'outliers')


def cases(count):
    return hypothesis.settings(max_examples=count, derandomize=True, deadline=None, database=None)


def make_embeddings(kind, count, dim, random):
    normal = random.standard_normal((count, dim))
    if kind == 'grid':
        normal = random.integers(-1, 3, (count, dim))
    if kind == 'far from zero':
        normal = 1000 + 0.01 * normal
    if kind == 'few points':
        normal = np.random.default_rng(7).standard_normal((3, dim))[random.integers(0, 3, count)]
    if kind == 'two scales':
        normal = normal * 10.0 ** random.integers(-6, 7, (count, 1))
    if kind == 'outliers':
        normal = normal * np.where(random.random((count, 1)) < 0.1, 1000, 1)
    scale = {'tiny': 1e-25, 'huge': 1e15}.get(kind, 1)
    return (scale * normal).astype(np.float32)


def make_dataset(count, random):
    """Few identities in few cameras, junk among them, so that much is excluded and some queries have no match."""
    pids = random.integers(-1, 4, count)
    cameras = random.integers(1, 4, count)
    fids = [f'{pid}_c{camera}s1_{number}.jpg' for number, (pid, camera) in enumerate(zip(pids, cameras))]
    return Dataset('made up', pids.astype(str).astype(object), np.array(fids, object))


@st.composite
def problems(draw, metrics=METRICS):
    """Queries and gallery as `rank` takes them, and sizes of chunks and batches."""
    random = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    query_count, gallery_count, dim = draw(st.integers(1, 4)), draw(st.integers(1, 30)), draw(st.integers(1, 5))
    kind, metric = draw(st.sampled_from(KINDS)), draw(st.sampled_from(metrics))
    queries, gallery = (make_embeddings(kind, count, dim, random) for count in (query_count, gallery_count))
    if metric == 'cosine':
        queries[~queries.any(axis=1)] = 1
        gallery[~gallery.any(axis=1)] = 1
    sizes = {'GALLERY_AT_ONCE': draw(st.sampled_from((1, 4, 1000))),
             'QUERIES_AT_ONCE': draw(st.sampled_from((1, 3, 1000))),
             'MATCHES_AT_ONCE': draw(st.sampled_from((1, 10, 1000)))}
    excluder = exclusion.load(draw(st.sampled_from(('market1501', 'diagonal'))))
    return {'queries': queries, 'query_set': make_dataset(query_count, random), 'gallery': gallery,
            'gallery_set': make_dataset(gallery_count, random), 'excluder': excluder, 'metric': metric,
            'batch_size': draw(st.sampled_from((1, 2, 256))), 'sizes': sizes}


def distances_of(query, gallery, metric):
    """Exact comparable distances, float64 [G], of one query [D] to a gallery [G, D]."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == 'cosine':
        query = query / np.sqrt((query ** 2).sum())
        gallery = gallery / np.sqrt((gallery ** 2).sum(axis=1, keepdims=True))
    return (abs(query - gallery) if metric == 'cityblock' else (query - gallery) ** 2).sum(axis=1)


def market_ap(hits):
    """Average precision as in the benchmark's script, for a ranked list of hits and misses."""
    found, ap, precision_before, count = 0, 0, 1, np.sum(hits)
    for position, hit in enumerate(hits):
        found += hit
        precision = found / (position + 1)
        if hit:
            ap += (precision_before + precision) / 2 / count
        precision_before = precision
    return ap


def brute_force(distances, matches, valid):
    """Number of matches, both APs, ranks of the first and the last match of one query, for arrays [G]."""
    distances, matches = distances[valid], matches[valid]
    if not matches.any():
        return 0, np.nan, np.nan, 0, 0
    hits = matches[np.argsort(distances, kind='stable')]
    ranks = np.flatnonzero(hits) + 1
    # Only the order of distances, because scikit-learn compares scores in float32 precision in some places.
    scores = -np.unique(distances, return_inverse=True)[1]
    return len(ranks), average_precision_score(matches, scores), market_ap(hits), ranks[0], ranks[-1]


def expected_ranks(queries, query_set, gallery, gallery_set, excluder, metric, keep=True, **_):
    ignored = excluder(gallery_set.fids)(query_set.fids)
    return [brute_force(distances_of(query, gallery, metric), gallery_set.pids == pid, ~ignored[q] & keep)
            for q, (query, pid) in enumerate(zip(queries, query_set.pids))]


def retrieval_of(problem, **more):
    names = ('query_set', 'gallery_set', 'excluder', 'metric', 'batch_size')
    return Retrieval(query_embeddings=problem['queries'], gallery_embeddings=problem['gallery'],
                     **{name: problem[name] for name in names}, **more)


def computed_ranks(problem, parts=None, **more):
    with mock.patch.multiple(chunks, **problem['sizes']):
        retrieval = retrieval_of(problem, **more)
        return ranking.rank(retrieval) if parts is None else ranking.rank_parts(retrieval, parts)


def as_rows(ranks):
    return list(zip(ranks.matches, ranks.ap_sklearn, ranks.ap_market1501, ranks.first_match_rank, ranks.last_match_rank))


@cases(500)
@hypothesis.given(problems())
def test_ranks_are_those_of_brute_force(problem):
    ranks = computed_ranks(problem)
    np.testing.assert_allclose(as_rows(ranks), expected_ranks(**problem), rtol=0, atol=1e-12)
    firsts = ranks.first_match_rank[ranks.matched]
    if len(firsts):
        count = len(problem['gallery'])
        np.testing.assert_array_equal(ranks.cmc(count), [np.mean(firsts <= k + 1) for k in range(count)])


@cases(150)
@hypothesis.given(problems(), st.integers(1, 4), st.integers(0, 2 ** 32))
def test_parts_of_a_gallery_are_ranked_as_if_each_were_all(problem, count, seed):
    parts = np.random.default_rng(seed).integers(0, count, len(problem['gallery']))
    all_ranks = computed_ranks(problem, parts=parts)
    assert len(all_ranks) == parts.max() + 1
    excluded = problem['excluder'](problem['gallery_set'].fids)
    for part, ranks in enumerate(all_ranks):
        keep = parts == part
        np.testing.assert_allclose(as_rows(ranks), expected_ranks(**problem, keep=keep), rtol=0, atol=1e-12)
        assert ranks.junk == np.sum(getattr(excluded, 'junk', np.zeros(len(keep))) * keep)
        if keep.any():  # To the bit.
            alone = {**problem, 'gallery': problem['gallery'][keep], 'gallery_set': problem['gallery_set'].take(keep)}
            np.testing.assert_array_equal(as_rows(ranks), as_rows(computed_ranks(alone)))


@cases(400)
@hypothesis.given(problems(), st.integers(1, 8), st.booleans())
def test_neighbours_are_those_of_brute_force(problem, k, keep_excluded):
    query_fids, gallery_fids = problem['query_set'].fids, problem['gallery_set'].fids
    with mock.patch.multiple(chunks, **problem['sizes']):
        found = neighbours.nearest(retrieval_of(problem), k, keep_excluded)
    ignored = problem['excluder'](gallery_fids)(query_fids)
    for q, query in enumerate(problem['queries']):
        distances = distances_of(query, problem['gallery'], problem['metric'])
        allowed = np.flatnonzero(~ignored[q] | keep_excluded)
        rows = allowed[np.argsort(distances[allowed], kind='stable')][:k]
        missing = k - len(rows)
        assert found.rows[q].tolist() == [*rows, *[-1] * missing]
        assert found.excluded[q].tolist() == [*ignored[q, rows], *[False] * missing]
        shown = {'euclidean': np.sqrt(distances + 1e-12), 'cosine': distances / 2}.get(problem['metric'], distances)
        assert found.distances[q].tolist() == [*shown[rows], *[np.inf] * missing]


@cases(200)
@hypothesis.given(problems(), st.integers(1, 8), st.integers(1, 50))
def test_a_prepared_gallery_gives_the_same_neighbours_to_the_last_bit(problem, k, at_once):
    queries, gallery, metric = problem['queries'], problem['gallery'], problem['metric']
    expected = neighbours.nearest(retrieval_of({**problem, 'excluder': None}), k)
    with mock.patch.multiple(chunks, **problem['sizes']), mock.patch.object(neighbours, 'IMAGES_AT_ONCE', at_once):
        found = neighbours.PreparedGallery(gallery, metric).nearest(queries, k, problem['batch_size'])
    for name in ('rows', 'distances', 'excluded'):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('dtype, stored', [('<f4', {}), ('<f8', {}), ('<f4', {'chunks': True, 'compression': 'gzip'})])
def test_a_prepared_gallery_reads_any_embedding_file(metric, dtype, stored, tmp_path):
    queries, query_set, gallery, gallery_set = scene(4, 9000, 32)
    gallery[5:8] *= 1e-40  # Where the precision of float32 ends.
    with h5py.File(tmp_path / 'gallery.h5', 'w') as file:
        file.create_dataset('emb', data=gallery.astype(dtype), **stored)
    expected = neighbours.nearest(Retrieval(queries, query_set, gallery, gallery_set, None, metric), 20)
    with Embeddings(tmp_path / 'gallery.h5') as embeddings:
        found = neighbours.PreparedGallery(embeddings, metric).nearest(queries, 20)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.distances, expected.distances)


def test_hand_derived_scores():
    # Ranked: match, other, match and other at one distance, match. Gallery order puts the tied match first.
    gallery = np.array([[1], [2], [3], [-3], [4]], np.float32)
    pids = np.array(['a', 'b', 'a', 'b', 'a'], object)
    fids = np.array(list('vwxyz'), object)
    query = Dataset('', np.array(['a'], object), np.array(['q'], object))
    ranks = ranking.rank(Retrieval(np.zeros((1, 1)), query, gallery, Dataset('', pids, fids),
                                   exclusion.load('diagonal'), 'euclidean'))
    assert ranks.ap_sklearn[0] == pytest.approx((1 / 1 + 2 / 4 + 3 / 5) / 3)
    assert ranks.ap_market1501[0] == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3)
    assert (ranks.first_match_rank[0], ranks.last_match_rank[0], ranks.scores['mINP'][0]) == (1, 5, 3 / 5)
    assert (ranks.matches[0], ranks.valid[0]) == (3, 5)


@pytest.mark.parametrize('metric', ['euclidean', 'sqeuclidean', 'cityblock'])
def test_scores_are_those_of_the_original(metric):
    """The original: the whole float32 matrix of distances, infinite where ignored; scikit-learn; an argsort."""
    random = np.random.default_rng(1)
    centres = random.standard_normal((20, 32))
    query_pids, gallery_pids = random.integers(0, 20, 40), random.integers(0, 20, 400)
    queries = (centres[query_pids] + 1.5 * random.standard_normal((40, 32))).astype(np.float32)
    gallery = (centres[gallery_pids] + 1.5 * random.standard_normal((400, 32))).astype(np.float32)
    sets = [Dataset('', pids.astype(str).astype(object),
                    np.array([f'{pid}_c{random.integers(1, 5)}_{i}.jpg' for i, pid in enumerate(pids)], object))
            for pids in (query_pids, gallery_pids)]
    excluder = exclusion.load('duke')

    differences = queries[:, None] - gallery[None]
    distances = abs(differences).sum(axis=2) if metric == 'cityblock' else (differences ** 2).sum(axis=2)
    if metric == 'euclidean':
        distances = np.sqrt(distances + np.float32(1e-12))
    ignored = excluder(sets[1].fids)(sets[0].fids)
    distances[ignored] = np.inf
    matches = (query_pids[:, None] == gallery_pids) & ~ignored
    mean_ap = np.mean([average_precision_score(match, 1 / (1 + d)) for match, d in zip(matches, distances)])
    hits = np.take_along_axis(matches, np.argsort(distances, axis=1), axis=1)
    cmc = np.mean(np.cumsum(hits, axis=1) > 0, axis=0)

    ranks = ranking.rank(Retrieval(queries, sets[0], gallery, sets[1], excluder, metric))
    assert ranks.ap_sklearn.mean() == pytest.approx(mean_ap, abs=1e-6)
    np.testing.assert_allclose(ranks.cmc(400), cmc, atol=1e-6)


def scene(query_count, gallery_count, dim, seed=0):
    """Clustered embeddings with many exact duplicates, and their datasets."""
    random = np.random.default_rng(seed)
    query_set, gallery_set = make_dataset(query_count, random), make_dataset(gallery_count, random)
    gallery = random.standard_normal((gallery_count, dim)).astype(np.float32) + 5
    gallery[random.integers(0, gallery_count, gallery_count // 2)] = gallery[0]
    queries = np.concatenate([gallery[:query_count // 2], random.standard_normal((query_count, dim)) + 5])
    return queries[:query_count].astype(np.float32), query_set, gallery, gallery_set


@pytest.mark.parametrize('metric', METRICS)
def test_no_size_of_chunk_or_batch_changes_a_bit(metric):
    queries, query_set, gallery, gallery_set = scene(30, 1500, 128)
    all_ranks = []
    for at_once, batch_size in ((10 ** 6, 256), (700, 7), (97, 1)):
        with mock.patch.object(chunks, 'GALLERY_AT_ONCE', at_once):
            all_ranks.append(ranking.rank(Retrieval(queries, query_set, gallery, gallery_set,
                                                    exclusion.load('market1501'), metric, batch_size)))
    for ranks in all_ranks[1:]:
        assert ranks.junk == all_ranks[0].junk == (gallery_set.pids == '-1').sum()
        np.testing.assert_array_equal(as_rows(ranks), as_rows(all_ranks[0]))


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('dim', [2, 600])
def test_many_matches_of_a_query_and_images_far_longer_than_others(metric, dim):
    queries, query_set, gallery, gallery_set = scene(12, 1500, dim)
    queries[3], gallery[::100] = 1000 * queries[3], 1000 * gallery[::100]
    problem = {'queries': queries, 'query_set': query_set, 'gallery': gallery, 'gallery_set': gallery_set,
               'excluder': exclusion.load('market1501'), 'metric': metric, 'batch_size': 5,
               'sizes': {'GALLERY_AT_ONCE': 700, 'MATCHES_AT_ONCE': 1000}}
    ranks = computed_ranks(problem)
    assert ranks.matches.max() > 150
    np.testing.assert_allclose(as_rows(ranks), expected_ranks(**problem), rtol=0, atol=1e-12)


def pairs_measured(queries, query_set, gallery, gallery_set, metric='euclidean'):
    """Count the pairs of images, in addition to the matches, that are measured exactly."""
    excluder = exclusion.load('diagonal')
    with mock.patch.object(Distances, 'exact', autospec=True, side_effect=Distances.exact) as exact:
        ranks = ranking.rank(Retrieval(queries, query_set, gallery, gallery_set, excluder, metric))
    return sum(len(call.args[1]) for call in exact.call_args_list) - ranks.matches.sum()


@pytest.mark.parametrize('metric', ['euclidean', 'cityblock'])
@pytest.mark.parametrize('factor', [1000, 1e10])
def test_one_embedding_far_longer_than_the_others_leaves_them_decided(metric, factor):
    random = np.random.default_rng(0)
    queries, gallery = make_embeddings('normal', 20, 64, random), make_embeddings('normal', 3000, 64, random)
    sets = make_dataset(20, random), make_dataset(3000, random)
    usual = pairs_measured(queries, sets[0], gallery, sets[1], metric)
    gallery[1234] *= factor
    assert 0 < pairs_measured(queries, sets[0], gallery, sets[1], metric) < 1.1 * usual
    # An outlier query costs this query alone.
    queries[7] *= factor
    assert pairs_measured(queries, sets[0], gallery, sets[1], metric) < 1.3 * usual + 3000


def test_long_embeddings_are_hardly_ever_measured_exactly():
    random = np.random.default_rng(0)
    queries, gallery = make_embeddings('normal', 10, 2048, random), make_embeddings('normal', 1000, 2048, random)
    sets = make_dataset(10, random), make_dataset(1000, random)
    with mock.patch.object(distances, 'SUMMED_AT_ONCE', 10 ** 6):
        in_one_sum = pairs_measured(queries, sets[0], gallery, sets[1])
    assert pairs_measured(queries, sets[0], gallery, sets[1]) < in_one_sum / 3


@pytest.mark.parametrize('gallery, workers', [(19732, 1), (19732, 2), (20000, 2), (82161, 3), (5, 8), (16384, 1)])
def test_processes_get_equal_shares_of_a_gallery(gallery, workers):
    slices = chunks.even_slices(gallery, 16384, workers)
    sizes = [some.stop - some.start for some in slices]
    assert [some.start for some in slices] == [0, *np.cumsum(sizes)[:-1]] and sum(sizes) == gallery
    assert max(sizes) <= 16384 and max(sizes) - min(sizes) <= 1
    assert len(sizes) % workers == 0 or gallery < workers


def test_processes_and_parts_change_no_bit_and_the_gallery_is_read_once_for_all_parts():
    queries, query_set, gallery, gallery_set = scene(30, 1500, 8)
    reads = []

    class Source:
        shape = gallery.shape

        def rows(self, start, stop):
            reads.extend(range(start, stop))
            return gallery[start:stop]

    rest, parts = (gallery_set, exclusion.load('market1501'), 'euclidean'), np.arange(1500) % 7
    alone = ranking.rank_parts(Retrieval(queries, query_set, Source(), *rest), parts)
    assert sorted(reads) == sorted(2 * [*range(1500)])  # For the matches, and for the non-matches ranked above them.
    shared = ranking.rank_parts(Retrieval(queries, query_set, gallery, *rest, workers=3), parts)
    for ranks, others in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(as_rows(ranks), as_rows(others))
        assert ranks.junk == others.junk


def test_a_collapsed_net_ranks_everything_as_tied():
    _, query_set, _, gallery_set = scene(20, 1000, 8)
    excluder = exclusion.load('market1501')
    ranks = ranking.rank(Retrieval(np.full((20, 8), 3.3), query_set, np.full((1000, 8), 3.3), gallery_set, excluder,
                                   'euclidean'))
    valid = ~excluder(gallery_set.fids)(query_set.fids)
    shares = [np.mean(gallery_set.pids[valid[q]] == pid) for q, pid in enumerate(query_set.pids)]
    np.testing.assert_allclose(ranks.ap_sklearn[ranks.matched], np.array(shares)[ranks.matched])


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dim', [1, 100, 3000])
def test_approximate_distances_are_within_their_error_bound(metric, kind, dim):
    random = np.random.default_rng(0)
    queries, gallery = make_embeddings(kind, 20, dim, random), make_embeddings(kind, 30, dim, random)
    if metric == 'cosine':
        queries[~queries.any(axis=1)] = 1
        gallery[~gallery.any(axis=1)] = 1
    distances = Distances(queries, metric)
    chunk = distances.prepare(np.arange(30), gallery)
    approximate, error = distances.approximate(np.arange(20), chunk)
    exact = [distances_of(query, gallery, metric) for query in queries]
    assert (abs(approximate - exact) <= error[:, None]).all()
    pairs = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    assert distances.exact(pairs[0], chunk, pairs[1]).reshape(20, 30).tolist() == np.array(exact).tolist()


@pytest.mark.parametrize('queries, gallery, metric, message', [
    (np.ones((2, 3)), np.ones((5, 4)), 'euclidean', 'dimensions'),
    (np.ones((2, 0)), np.ones((5, 0)), 'euclidean', 'dimensions'),
    (np.ones((2, 3)), np.zeros((5, 3)), 'cosine', 'zero'),
    (np.zeros((2, 3)), np.ones((5, 3)), 'cosine', 'zero'),
    (np.ones((2, 3)), np.full((5, 3), 1e30), 'euclidean', 'too large'),
    (np.full((2, 3), -1e38), np.ones((5, 3)), 'cityblock', 'too large'),
])
def test_embeddings_that_cannot_be_compared(queries, gallery, metric, message):
    random = np.random.default_rng(0)
    with pytest.raises(InputError, match=message):
        ranking.rank(Retrieval(queries, make_dataset(2, random), gallery, make_dataset(5, random),
                               exclusion.load('diagonal'), metric))


# --- Re-ranking -------------------------------------------------------------------------------------------------------

def dense_reranking(queries, gallery, metric, k1, k2, weight):
    """Section 3 of Zhong et al. 2017, image by image and with full matrices: new distances [Q, G]."""
    images = np.concatenate([queries, gallery])
    distances = np.stack([distances_of(image, images, metric) for image in images])
    order = np.argsort(distances, axis=1, kind='stable')
    distances = distances / distances.max(axis=1, keepdims=True)

    def reciprocal(image, k):
        return {other for other in order[image, :k + 1] if image in order[other, :k + 1]}

    encodings = np.zeros_like(distances)
    for image in range(len(images)):
        members = reciprocal(image, k1)
        expanded = set(members)
        for member in members:
            half = reciprocal(member, round(k1 / 2))
            if len(half & members) > 2 / 3 * len(half):
                expanded |= half
        expanded = sorted(expanded)
        weights = np.exp(-distances[image, expanded])
        encodings[image, expanded] = weights / weights.sum()
    encodings = np.stack([encodings[order[image, :k2]].mean(axis=0) for image in range(len(images))])
    smaller = np.minimum(encodings[:len(queries), None], encodings[None, len(queries):]).sum(axis=2)
    # The sum of the larger ones, as the authors compute it. An image that is not among its own neighbours, for as many
    # others are equal, has no encoding; otherwise the sums are equal.
    larger = 2 - smaller
    return weight * distances[:len(queries), len(queries):] + (1 - weight) * (1 - smaller / larger)


@cases(60)
@hypothesis.given(problems(), st.sampled_from((3, 10, 20)), st.sampled_from((1, 3, 6)), st.sampled_from((0.0, 0.3, 1.0)))
def test_reranking_agrees_with_its_dense_form(problem, k1, k2, weight):
    queries, gallery, metric = problem['queries'], problem['gallery'], problem['metric']
    images = np.concatenate([queries, gallery])
    # Where all distances are 0 the paper's relative distances are 0 / 0.
    hypothesis.assume(all(distances_of(image, images, metric).max() > 1e-30 for image in images))
    with mock.patch.multiple(chunks, **problem['sizes']):
        learnt = k_reciprocal(queries, gallery, metric, k1, k2, weight)
    everything = slice(0, len(queries))
    distances = learnt.applied_to(Distances(queries, metric), everything)
    chunk = distances.prepare(np.arange(len(gallery)), gallery)
    pairs = np.repeat(np.arange(len(queries)), len(gallery)), np.tile(np.arange(len(gallery)), len(queries))
    exact = distances.exact(pairs[0], chunk, pairs[1]).reshape(len(queries), len(gallery))
    np.testing.assert_allclose(exact, dense_reranking(queries, gallery, metric, k1, k2, weight), rtol=0, atol=1e-9)
    approximate, error = distances.approximate(np.arange(len(queries)), chunk)
    assert (abs(approximate - exact) <= error[:, None]).all()

    # The ranks follow the new distances, in the whole gallery and in parts of it.
    ignored = problem['excluder'](problem['gallery_set'].fids)(problem['query_set'].fids)
    for parts in (np.zeros(len(gallery), int), np.arange(len(gallery)) % 3):
        all_ranks = computed_ranks(problem, parts=parts, reranking=learnt)
        for part, ranks in enumerate(all_ranks):
            expected = [brute_force(exact[q], problem['gallery_set'].pids == pid, ~ignored[q] & (parts == part))
                        for q, pid in enumerate(problem['query_set'].pids)]
            np.testing.assert_allclose(as_rows(ranks), expected, rtol=0, atol=1e-12)

    # So do neighbours, also the neighbours of some queries in a part of the gallery.
    random = np.random.default_rng(len(gallery))
    some, part = random.permutation(len(queries))[:2], random.permutation(len(gallery))[:7]
    found = neighbours.nearest(Retrieval(queries[some], problem['query_set'].take(some), gallery[part],
                                         problem['gallery_set'].take(part), None, metric,
                                         reranking=learnt.take(some, part)), 3)
    for number, q in enumerate(some):
        order = np.argsort(exact[q, part], kind='stable')[:3]
        assert found.rows[number].tolist() == [*order, *[-1] * (3 - len(order))]
        assert found.distances[number].tolist() == [*exact[q, part][order], *[np.inf] * (3 - len(order))]


def brute_nearest_and_furthest(images, k, metric, *_):
    distances = np.stack([distances_of(image, images, metric) for image in images])
    return np.argsort(distances, axis=1, kind='stable')[:, :k], distances.max(axis=1)


@cases(60)
@hypothesis.given(problems(), st.integers(1, 40), st.sampled_from((1, 5, 1000)))
def test_nearest_and_furthest_are_those_of_brute_force(problem, k, at_once):
    images = np.concatenate([problem['queries'], problem['gallery']])
    k = min(k, len(images))
    with mock.patch.multiple(chunks, **problem['sizes']), mock.patch.object(neighbours, 'IMAGES_AT_ONCE', at_once):
        found = neighbours.nearest_and_furthest(images, k, problem['metric'], problem['batch_size'])
    for ours, expected in zip(found, brute_nearest_and_furthest(images, k, problem['metric'])):
        np.testing.assert_array_equal(ours, expected)


def as_bits(learnt):
    """Return the contents of a `Reranking` as arrays, to be compared to the last bit."""
    encodings = [array for encoding in (learnt.query_encodings, learnt.gallery_encodings)
                 for array in (encoding.data, encoding.indices, encoding.indptr)]
    return [learnt.furthest, *encodings]


@pytest.mark.parametrize('metric', METRICS)
def test_reranking_is_the_same_to_the_last_bit(metric):
    """With neighbours by brute force, in other chunks and, once, in other processes."""
    queries, _, gallery, _ = scene(40, 700, 32)

    def stacked_brute_force(stacked, *args):
        return brute_nearest_and_furthest(stacked.rows(0, stacked.shape[0]), *args)

    with mock.patch.object(reranking, 'nearest_and_furthest', stacked_brute_force):
        expected = as_bits(k_reciprocal(queries, gallery, metric))
    small = {'GALLERY_AT_ONCE': 97, 'QUERIES_AT_ONCE': 61}
    with mock.patch.multiple(chunks, **small), mock.patch.object(neighbours, 'IMAGES_AT_ONCE', 30):
        in_chunks = as_bits(k_reciprocal(queries, gallery, metric, batch_size=7))
    shared = as_bits(k_reciprocal(queries, gallery, metric, workers=2)) if metric == 'euclidean' else in_chunks
    for found in (in_chunks, shared):
        for ours, theirs in zip(found, expected):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('at_once', [1, 1000, 1 << 20])
def test_jaccard_distances_are_those_of_each_pair(at_once):
    queries, _, gallery, _ = scene(20, 300, 32)
    learnt = k_reciprocal(queries, gallery, 'euclidean')
    with mock.patch.object(reranking, 'PAIRS_AT_ONCE', at_once):
        distances = learnt.applied_to(Distances(queries, 'euclidean'), slice(0, 20))
    gallery_encodings = [{} for _ in range(300)]
    for row, column, value in zip(*learnt.gallery_encodings.nonzero(), learnt.gallery_encodings.tocoo().data):
        gallery_encodings[row][column] = value
    expected = {}
    for query in range(20):
        entries = slice(*learnt.query_encodings.indptr[query:query + 2])
        for column, value in zip(learnt.query_encodings.indices[entries], learnt.query_encodings.data[entries]):
            for row in range(300):
                if column in gallery_encodings[row]:
                    pair = query * 300 + row
                    expected[pair] = expected.get(pair, 0.0) + min(value, gallery_encodings[row][column])
    assert distances.pairs[:-1].tolist() == sorted(expected)
    assert distances.jaccard[:-1].tolist() == [1 - expected[pair] / (2 - expected[pair]) for pair in sorted(expected)]

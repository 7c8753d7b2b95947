"""Grouping of unlabelled images: distances, clusters, the choice of the threshold, knowledge, files and the command."""
import csv
import json

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import DBSCAN
from sklearn.metrics import silhouette_score

from conftest import assert_one_sentence, run_main, run_script
from test_ranking import dense_reranking
from tripletreid.clustering import agreement, clusterer, features, graph, knowledge, partition, sweep
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.dataset_writer import save_datasets
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError


def people(identities=12, images=8, noise=0.45, dim=16, cameras=2, seed=0, singles=6):
    """Embeddings around a point per identity and a shift per camera: embeddings, identities, cameras, file ids."""
    random = np.random.default_rng(seed)
    pids = np.repeat(np.arange(identities), images)
    pids = np.concatenate([pids, identities + np.arange(singles)])
    cams = np.arange(len(pids)) % cameras
    points, shifts = random.normal(size=(identities + singles, dim)), 0.5 * random.normal(size=(cameras, dim))
    embs = points[pids] + shifts[cams] + noise * random.normal(size=(len(pids), dim))
    fids = np.array([f'{row:04}_c{cam + 1}_{row // cameras:06}.jpg' for row, cam in enumerate(cams)], object)
    return embs.astype(np.float32), pids, cams, fids


def dense(found):
    """Return a graph as a full matrix: 1 where no distance is stored, 0 on the diagonal."""
    distances = np.ones(found.shape)
    entries = found.tocoo()
    distances[entries.row, entries.col] = entries.data
    np.fill_diagonal(distances, 0)
    return distances


def same_partition(first, second):
    pairs = set(zip(first.tolist(), second.tolist()))
    return len(pairs) == len(set(first)) == len(set(second)) and (np.equal(first, -1) == np.equal(second, -1)).all()


@pytest.mark.parametrize('entries', [7, 1 << 23])
def test_jaccard_distances_equal_the_dense_definition(entries, monkeypatch):
    monkeypatch.setattr(graph, 'ENTRIES_AT_ONCE', entries)
    embs, *_ = people(identities=7, images=6)
    found = dense(graph.jaccard_graph(embs, 'euclidean', 8, 3))
    assert 0.02 < (found < 1).mean() < 0.9 and (found == found.T).all()
    for border in (1, 17, 30, len(embs) - 1):
        expected = dense_reranking(embs[:border], embs[border:], 'euclidean', 8, 3, 0)
        np.testing.assert_allclose(found[:border, border:], expected, rtol=0, atol=1e-9)


def test_large_distances_are_not_stored():
    embs, *_ = people()
    every, near = (graph.jaccard_graph(embs, 'euclidean', 8, 3, largest) for largest in (1.0, 0.5))
    expected = np.where(dense(every) <= 0.5, dense(every), 1)
    assert (dense(near) == expected).all() and near.nnz < every.nnz


def test_distant_pairs_take_no_memory_and_change_no_cluster(monkeypatch):
    embs, *_ = people(30, 10, noise=0.8, dim=32)
    near = clusterer.cluster(embs, clusterer.Settings(threshold=0.6, k1=15))
    monkeypatch.setattr(clusterer, 'LARGEST_STORED', 1.0)
    every = clusterer.cluster(embs, clusterer.Settings(threshold=0.6, k1=15))
    assert (near.labels == every.labels).all() and near.chosen.silhouette == pytest.approx(every.chosen.silhouette, abs=0.05)
    counts = [graph.jaccard_graph(embs, 'euclidean', 15, 6, largest).nnz for largest in (0.95, 1.0)]
    assert 3 * counts[0] < counts[1]


def test_images_with_equal_embeddings_are_in_one_cluster():
    embs = np.repeat(people(identities=5, images=1, singles=0)[0], 6, axis=0)
    found = clusterer.cluster(embs, clusterer.Settings(k1=5, k2=2))
    assert same_partition(found.labels, np.repeat(np.arange(5), 6))


@pytest.mark.parametrize('min_samples', [1, 4])
def test_dbscan_on_the_sparse_graph_equals_scikit_learns_on_the_dense_matrix(min_samples):
    found = graph.jaccard_graph(people(noise=0.7)[0], 'euclidean', 10, 3)
    clustering, seen = partition.Dbscan(found, min_samples), set()
    for threshold in (0.2, 0.35, 0.5, 0.65, 0.8):
        expected = DBSCAN(eps=threshold, min_samples=min_samples, metric='precomputed').fit(dense(found)).labels_
        assert (clustering.labels(threshold) == expected).all()
        seen.add((expected.max(), (expected < 0).sum()))
    assert len(seen) > 2


def test_average_linkage_equals_a_naive_one():
    found = graph.jaccard_graph(people(identities=5, images=5)[0], 'euclidean', 8, 3)
    distances, threshold = dense(found), 0.7
    clusters = [[row] for row in range(len(distances))]
    while len(clusters) > 1:
        means = {(i, j): distances[np.ix_(clusters[i], clusters[j])].mean()
                 for i in range(len(clusters)) for j in range(i)}
        (i, j), nearest = min(means.items(), key=lambda item: item[1])
        if nearest > threshold:
            break
        clusters[j] += clusters.pop(i)
    expected = np.full(len(distances), -1)
    for number, members in enumerate(each for each in clusters if len(each) > 1):
        expected[members] = number
    assert expected.max() > 2 and same_partition(partition.Agglomerative(found).labels(threshold), expected)


def test_agglomerative_refuses_more_images_than_memory_holds(monkeypatch):
    monkeypatch.setattr(partition, 'MOST_AGGLOMERATED', 10)
    with pytest.raises(InputError, match='--method dbscan'):
        partition.Agglomerative(sparse.csr_array((11, 11)))


def test_the_silhouette_is_scikit_learns():
    found = graph.jaccard_graph(people(singles=0)[0], 'euclidean', 10, 3)
    similarities = found.copy()
    similarities.data = 1 - similarities.data
    labels = np.repeat(np.arange(12), 8)
    labels[:3] = [1, 2, 3]
    expected = silhouette_score(dense(found), labels, metric='precomputed')
    assert sweep.silhouette(similarities, labels) == pytest.approx(expected, abs=1e-12)
    labels[-8:] = -1  # Outliers count with 0.
    rest = silhouette_score(dense(found)[:-8, :-8], labels[:-8], metric='precomputed')
    assert sweep.silhouette(similarities, labels) == pytest.approx(rest * (len(labels) - 8) / len(labels), abs=1e-12)


def test_agreement_is_counted_pair_by_pair():
    labels, truth = np.array([0, 0, 0, 1, 1, -1, -1]), np.array([0, 0, 1, 1, 1, 2, 2])
    scores = agreement.agreement(labels, truth)
    # Joined are 3 + 1 pairs, of which 1 + 1 are true; 1 + 3 + 1 pairs are true.
    assert (scores.precision, scores.recall, scores.f) == (2 / 4, 2 / 5, pytest.approx(4 / 9))
    assert scores.purity == pytest.approx(6 / 7)
    assert agreement.pairwise(np.array([-1, -1]), np.array([0, 1])) == (0, 0, 0)
    junk = np.array([0, 1, -1])
    assert agreement.agreement(np.append(labels, junk), np.append(truth, [-1, -1, -1])) == scores


@pytest.mark.parametrize('noise', [0.6, 0.9])
@pytest.mark.parametrize('method', partition.METHODS)
def test_the_chosen_threshold_is_near_the_best(noise, method):
    embs, pids, *_ = people(40, 12, noise=noise, dim=24, cameras=1)
    found = clusterer.cluster(embs, clusterer.Settings(method, k1=15), identities=pids)
    best = max(row.agreement.f for row in found.rows)
    assert found.chosen.agreement.f >= 0.9 * best > 0.5
    assert any(row.agreement.f < 0.9 * found.chosen.agreement.f for row in found.rows)


def test_cameras_and_whitening_make_embeddings_comparable(tmp_path):
    embs, pids, cams, _ = people(20, 12, noise=0.4, cameras=3)
    embs = embs + 2 * np.random.default_rng(1).normal(size=(3, embs.shape[1]))[cams].astype(np.float32)

    def f(whitening, cameras):
        found = clusterer.cluster(embs, clusterer.Settings(whitening=whitening, k1=12), cameras, identities=pids)
        return found.chosen.agreement.f

    assert f(0.5, cams) > 0.9 > f(0.5, None)
    # By the definition, with all rows at once.
    unit = embs.astype(np.float64) / np.linalg.norm(embs, axis=1, keepdims=True)
    for cam in range(3):
        unit[cams == cam] -= unit[cams == cam].mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(unit.T, bias=True))
    expected = unit @ axes * np.maximum(variances, 0.01 * variances.mean()) ** -0.25
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = features.features(embs, cams, 0.5)
    np.testing.assert_allclose(found.all() @ found.all().T, expected @ expected.T, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([found.rows(0, 7), found.rows(7, 20)]), found.rows(0, 20))


def test_a_zero_embedding_is_an_error():
    embs = people()[0]
    embs[3] = 0
    with pytest.raises(InputError, match='row 3'):
        features.features(embs)


def test_images_of_one_moment_are_never_in_one_cluster():
    embs, pids, *_ = people(identities=6, images=8, noise=0.9, singles=0)
    moments = np.tile(np.arange(8), 6)  # Each moment shows each identity once.
    settings = clusterer.Settings(threshold=0.8, k1=12)
    without, found = (clusterer.cluster(embs, settings, moments=each, identities=pids) for each in (None, moments))
    most = [max(np.bincount(moments[each.labels == label]).max() for label in range(each.labels.max() + 1))
            for each in (without, found)]
    assert most[0] > most[1] == 1
    scores = [agreement.agreement(each.labels, pids).f for each in (without, found)]
    assert scores[1] > scores[0]


def test_known_names_are_kept():
    embs, pids, *_ = people(identities=8, images=8, noise=0.6, singles=3)
    names = np.full(len(embs), knowledge.UNKNOWN)
    names[[0, 1, 8, 9, 16, 17]] = [0, 0, 1, 1, 0, 0]  # The third identity has the name of the first.
    names[-1] = 2
    labels = clusterer.cluster(embs, clusterer.Settings(threshold=0.75, k1=12), names=names).labels
    assert labels[0] == labels[1] == labels[16] == labels[17] >= 0 and labels[8] == labels[9] >= 0
    assert labels[0] != labels[8]
    names_in_cluster = {label: set(names[(labels == label) & (names >= 0)]) for label in range(labels.max() + 1)}
    assert all(len(each) < 2 for each in names_in_cluster.values())


def test_a_number_of_individuals_chooses_the_threshold():
    embs, *_ = people(12, 10, noise=0.5)
    counts = {number: len(partition.sizes(clusterer.cluster(embs, clusterer.Settings(individuals=number, k1=12)).labels))
              for number in (3, 12)}
    assert counts[12] == 12 and counts[3] < 12


def test_a_cluster_that_swallows_many_is_a_doubt():
    assert '300 of 1000 images (30%)' in sweep.doubt(np.array([300, *[7] * 100]), 1000)
    assert sweep.doubt(np.array([8, 8, 9]), 25) is None and sweep.doubt(np.array([120, 100, 110]), 330) is None
    assert 'One cluster holds 400 of 400' in sweep.doubt(np.array([400]), 400)


@pytest.fixture
def files(tmp_path):
    """all.csv and all.h5 of `people`."""
    embs, pids, _, fids = people(12, 10, noise=0.3)
    dataset = Dataset('all', np.array([f'{pid:02}' for pid in pids], object), fids)
    save_datasets({tmp_path / 'all.csv': zip(dataset.pids, dataset.fids)})
    save_embeddings(tmp_path / 'all.h5', dataset, embs, {'image_root': str(tmp_path)})
    return tmp_path


def group(files, *flags, embeddings='all.h5'):
    return run_main('cluster.py', '--embeddings', files / embeddings, '--out', files / 'groups.csv', '--k1', 9, '--k2', 3,
                    *flags)


def test_clusters_and_outliers_are_written_and_decisions_applied(files):
    process = group(files, '--dataset', files / 'all.csv', '--camera', r'_c(\d)_')
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line[0] for line in lines].count('→') == 1 and 'purity' in lines[0]
    groups, outliers = (load_dataset(files / name) for name in ('groups.csv', 'groups_outliers.csv'))
    truth = dict(zip(*[getattr(load_dataset(files / 'all.csv'), name) for name in ('fids', 'pids')]))
    assert sorted([*groups.fids, *outliers.fids]) == sorted(truth)
    assert len(set(groups.pids)) == 12 and len(set(outliers.pids)) == len(outliers) >= 3
    pids = [truth[fid] for fid in groups.fids]
    assert agreement.pairwise(*(np.unique(each, return_inverse=True)[1] for each in (groups.pids, pids)))[2] > 0.95
    facts = json.loads((files / 'groups.json').read_text())
    assert facts['embeddings'] == [str(files / 'all.h5')]
    assert facts['threshold'] in [row['threshold'] for row in facts['table']]

    # The same command replaces its own files, and nothing else.
    before = [(files / name).read_bytes() for name in ('groups.csv', 'groups_outliers.csv', 'groups.json')]
    assert group(files, '--dataset', files / 'all.csv', '--camera', r'_c(\d)_').returncode == 0
    assert before == [(files / name).read_bytes() for name in ('groups.csv', 'groups_outliers.csv', 'groups.json')]
    other = run_script('cluster.py', '--embeddings', files / 'all.h5', '--out', files / 'all.csv')
    assert_one_sentence(other, 'all.csv', 'not overwritten')

    # Two clusters are merged and named, one image is thrown out by a name that is invisible.
    first, second = sorted(set(groups.pids))[:2]
    merged = [fid for pid, fid in zip(groups.pids, groups.fids) if pid in (first, second)]
    thrown_out = next(fid for fid in groups.fids if fid not in merged)
    rows = [['image', 'identity', facts['clusters_sha256']], *([fid, 'Ada'] for fid in merged), [thrown_out, '\u200b']]
    with open(files / 'decisions.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    apply = ['--apply', files / 'decisions.csv', '--clusters', files / 'groups.csv', '--out', files / 'named.csv']
    process = run_script('cluster.py', *apply)
    assert process.returncode == 0, process.stderr
    named = load_dataset(files / 'named.csv')
    assert [fid for pid, fid in zip(named.pids, named.fids) if pid == 'Ada'] == merged
    assert thrown_out not in named.fids and len(named) == len(groups) - 1 and len(set(named.pids)) == 11

    rows[0][2] = '0' * 64
    with open(files / 'decisions.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    assert_one_sentence(run_main('cluster.py', *apply), 'another clustering')
    assert_one_sentence(run_main('cluster.py', '--apply', files, *apply[2:]), f'{files} cannot be read: Is a directory')


def test_names_and_moments_of_the_command(files):
    everybody = load_dataset(files / 'all.csv')
    (files / 'names.csv').write_text(''.join(f'Ada,{fid}\n' for fid in everybody.fids[:2]))
    process = group(files, '--names', files / 'names.csv', '--moment', r'_(\d+)\.jpg')
    assert process.returncode == 0, process.stderr
    groups = load_dataset(files / 'groups.csv')
    ada = [fid for pid, fid in zip(groups.pids, groups.fids) if pid == 'Ada']
    assert set(everybody.fids[:2]) <= set(ada)  # They share a moment, but the name counts.
    times = {}
    for pid, fid in zip(groups.pids, groups.fids):
        if fid not in everybody.fids[:2]:
            times.setdefault(pid, []).append(fid[-10:])
    assert all(len(set(each)) == len(each) for each in times.values())


def test_tracklets_are_grouped_as_one(tmp_path):
    embs, pids, _, fids = people(6, 30, noise=0.4, singles=0)
    tracklets = np.array([f't{row // 3}' for row in range(len(fids))], object)
    rows = list(zip(np.full(len(fids), '?'), fids, tracklets))
    save_datasets({tmp_path / 'all.csv': rows})
    save_embeddings(tmp_path / 'all.h5', load_dataset(tmp_path / 'all.csv'), embs)
    process = group(tmp_path, '--dataset', tmp_path / 'all.csv', '--pool_tracklets')
    assert process.returncode == 0, process.stderr
    assert '60 tracklets' in process.stdout
    groups = load_dataset(tmp_path / 'groups.csv')
    clusters_of_tracklet = {}
    for pid, tracklet in zip(groups.pids, groups.tracklets):
        clusters_of_tracklet.setdefault(tracklet, set()).add(pid)
    assert all(len(each) == 1 for each in clusters_of_tracklet.values()) and len(set(groups.pids)) == 6


def test_what_cannot_be_grouped_is_one_sentence(files):
    assert_one_sentence(group(files, '--min_size', 50, '--threshold', 0.3), 'outliers', '--min_size')
    assert_one_sentence(group(files, '--camera', r'_k(\d)'), '--camera', '0000_c1_000000.jpg')
    assert_one_sentence(group(files, '--camera', '('), 'regular expression')
    assert_one_sentence(group(files, embeddings='none.h5'), 'none.h5')
    assert_one_sentence(group(files, '--threshold', 0.5, '--individuals', 3), '--individuals')
    assert_one_sentence(run_main('cluster.py', '--images', files, '--out', files / 'x.csv'), '--experiment_root')
    one = load_dataset(files / 'all.csv').take(np.arange(1))
    save_embeddings(files / 'one.h5', one, np.ones((1, 4), np.float32))
    assert_one_sentence(group(files, embeddings='one.h5'), 'nothing to group')

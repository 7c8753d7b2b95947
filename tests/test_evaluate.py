"""evaluate.py as its user runs it: files in, JSON and a summary line out, and one sentence where that cannot be."""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from unittest import mock

import h5py
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import excluders
from conftest import ROOT, assert_one_sentence, run_script, wait_until
from reid.dataset import Dataset, load_dataset
from reid.embeddings import Embeddings, EmbeddingWriter, save_embeddings
from reid.evaluation import bootstrap, ranking, reranking

SUMMARY = re.compile(r'mAP: \d+\.\d\d% \| top-1: \d+\.\d\d% top-2: \d+\.\d\d% \| top-5: \d+\.\d\d% \| '
                     r'top-10: \d+\.\d\d%')


def write_set(folder, name, count, identities, seed, dim=16, noise=1.0, junk=0):
    """A csv file and its embeddings: clusters, one an identity, seen by three cameras; some of them junk."""
    random = np.random.default_rng(seed)
    pids = random.integers(0, identities, count)
    embs = np.random.default_rng(0).standard_normal((identities, dim))[pids]
    embs = (embs + noise * random.standard_normal((count, dim))).astype(np.float32)
    names = np.where(np.arange(count) < junk, '-1', np.char.zfill(pids.astype(str), 4))
    cameras = random.integers(1, 4, count)
    fids = [f'{name}/{pid}_c{camera}s1_{row:06}.jpg' for row, (pid, camera) in enumerate(zip(names, cameras))]
    dataset = Dataset(name, names.astype(object), np.array(fids, object))
    write_dataset(folder, name, dataset, embs)
    return dataset, embs


def write_dataset(folder, name, dataset, embs):
    lines = [f'{pid},{fid}\n' for pid, fid in zip(dataset.pids, dataset.fids)]
    (folder / f'{name}.csv').write_text(''.join(lines))
    save_embeddings(folder / f'{name}.h5', dataset, embs)


@pytest.fixture(scope='module')
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp('market')
    write_set(folder, 'query', 60, 15, seed=1)
    write_set(folder, 'test', 300, 12, seed=2, junk=30)
    write_set(folder, 'gt_bbox', 400, 15, seed=3)
    return folder


def arguments(folder, *more):
    return ['--excluder', 'market1501', '--metric', 'euclidean', '--query_dataset', folder / 'query.csv',
            '--query_embeddings', folder / 'query.h5', '--gallery_dataset', folder / 'test.csv',
            '--gallery_embeddings', folder / 'test.h5', *more]


def evaluate(folder, *more):
    """Standard output and error of a successful run, and what it wrote."""
    done = run_script('evaluate.py', *arguments(folder, *more, '--filename', folder / 'results.json'))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, json.loads((folder / 'results.json').read_text())


def naive(query_set, query_embs, gallery_set, gallery_embs, keep=True):
    """AP by scikit-learn, and rank of the first match, of each query that has a match."""
    ignored = excluders.load('market1501')(gallery_set.fids)(query_set.fids)
    aps, firsts = [], []
    for q, (pid, emb) in enumerate(zip(query_set.pids, query_embs)):
        valid = ~ignored[q] & keep
        distances = np.sqrt(((emb.astype(float) - gallery_embs[valid]) ** 2).sum(axis=1) + 1e-12)
        matches = gallery_set.pids[valid] == pid
        if matches.any():
            aps.append(average_precision_score(matches, -distances))
            firsts.append(1 + np.argmax(matches[np.argsort(distances, kind='stable')]))
        else:
            aps.append(np.nan)
            firsts.append(0)
    return np.array(aps), np.array(firsts)


def read(folder, name):
    dataset = load_dataset(folder / f'{name}.csv')
    with Embeddings(folder / f'{name}.h5') as embeddings:
        return dataset, embeddings.rows(0, len(embeddings))


def test_results(market):
    stdout, stderr, results = evaluate(market)
    queries, gallery = read(market, 'query'), read(market, 'test')
    aps, firsts = naive(*queries, *gallery)
    matched = firsts > 0
    assert 0 < matched.sum() < len(matched)
    assert results['aps'] == pytest.approx(aps[matched].tolist(), abs=1e-9)
    assert results['mAP'] == results['mAP_sklearn'] == pytest.approx(np.nanmean(aps), abs=1e-9)
    assert results['CMC'] == pytest.approx([np.mean(firsts[matched] <= k) for k in range(1, 301)])
    assert results['counts'] == {'queries': 60, 'queries_without_match': int((~matched).sum()), 'gallery': 300,
                                 'junk': 30}
    assert [query['fid'] for query in results['queries']] == queries[0].fids.tolist()
    assert [query['first_match_rank'] or 0 for query in results['queries']] == firsts.tolist()
    assert [query['ap'] is None for query in results['queries']] == np.isnan(aps).tolist()
    assert results['mINP'] == pytest.approx(np.mean([query['matches'] / query['last_match_rank']
                                                     for query in results['queries'] if query['matches']]))
    low, high = results['confidence']['mAP']
    assert low < results['mAP'] < high
    assert results['parameters']['metric'] == 'euclidean' and 'numpy' in results['versions']

    assert SUMMARY.fullmatch(stdout.splitlines()[-1])
    cmc = results['CMC']
    assert stdout.splitlines()[-1] == (f'mAP: {results["mAP"]:.2%} | top-1: {cmc[0]:.2%} top-2: {cmc[1]:.2%} | '
                                       f'top-5: {cmc[4]:.2%} | top-10: {cmc[9]:.2%}')
    assert stderr.count('Warning') == 1 and f'{(~matched).sum()} of 60 queries have no match' in stderr


def test_market_ap_and_batch_size(market):
    _, _, default = evaluate(market)
    _, _, results = evaluate(market, '--use_market_ap', '--batch_size', 7)
    assert results['mAP'] == results['mAP_market1501'] == default['mAP_market1501'] != default['mAP']
    assert results['aps'] == [query['ap_market1501'] for query in results['queries'] if query['matches']]
    assert results['queries'] == default['queries'] and results['CMC'] == default['CMC']


def test_number_of_workers_changes_nothing(market):
    _, _, alone = evaluate(market)
    _, _, shared = evaluate(market, '--workers', 2)
    for key in set(alone) - {'parameters', 'versions'}:
        assert alone[key] == shared[key], key


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """Files of a gallery that is divided between two processes."""
    folder = tmp_path_factory.mktemp('large')
    write_set(folder, 'query', 20, 5, seed=1, dim=2)
    write_set(folder, 'test', 20000, 5, seed=2, dim=2)
    return folder


@pytest.mark.parametrize('name, struck, status', [
    ('SIGTERM', 'parent', -signal.SIGTERM), ('SIGKILL', 'parent', -signal.SIGKILL), ('SIGINT', 'parent', 130),
    ('SIGINT', 'group', 130), ('SIGKILL', 'worker', 1)])
def test_workers_end_with_their_parent(large, tmp_path, name, struck, status):
    command = [sys.executable, ROOT / 'tests' / '_endless_evaluation.py', tmp_path, *arguments(large, '--workers', 2)]
    process = subprocess.Popen([str(word) for word in command], start_new_session=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    try:
        workers = workers_at_work(process, tmp_path)
        if struck == 'group':
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid if struck == 'parent' else workers[0], getattr(signal, name))
        # Whoever still has the pipe open keeps this waiting.
        output, _ = process.communicate(timeout=60)
        assert process.returncode == status and 'Traceback' not in output, output
        assert ('--workers was killed' in output) == (struck == 'worker')
        # A process closes its files a moment before it has ended.
        wait_until(lambda: not any(is_running(worker) for worker in workers), f'the end of {workers}', seconds=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def workers_at_work(process, folder):
    """The two processes that share the work, once both are at it."""
    def both_or_ended():
        return len(os.listdir(folder)) == 2 or process.poll() is not None

    wait_until(both_or_ended, f'two files in {folder}')
    assert process.poll() is None, process.communicate(timeout=60)
    return [int(name) for name in os.listdir(folder)]


def is_running(pid):
    try:
        state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # The second where it ends while it is looked at.
        return False
    return state != 'Z'


def test_by_camera(market):
    stdout, _, results = evaluate(market, '--by_camera')
    queries, gallery = read(market, 'query'), read(market, 'test')
    query_cameras, gallery_cameras = (np.array([fid.split('_c')[1][0] for fid in side[0].fids])
                                      for side in (queries, gallery))
    expected = {}
    for gallery_camera in '123':
        aps, _ = naive(*queries, *gallery, keep=gallery_cameras == gallery_camera)
        for query_camera in '123':
            chosen = aps[(query_cameras == query_camera) & ~np.isnan(aps)]
            if len(chosen):
                expected[query_camera, gallery_camera] = pytest.approx(chosen.mean()), len(chosen)
    found = {(entry['query_camera'], entry['gallery_camera']): (entry['mAP'], entry['queries'])
             for entry in results['by_camera']}
    assert found == expected and len(found) == 6
    assert SUMMARY.fullmatch(stdout.splitlines()[-1])


def test_multi_query(market):
    _, _, results = evaluate(market, '--multi_query_dataset', market / 'gt_bbox.csv', '--multi_query_embeddings',
                             market / 'gt_bbox.h5')
    (query_set, _), (images, embs) = read(market, 'query'), read(market, 'gt_bbox')
    same = np.array([[fid.split('/')[1][:7] == query.split('/')[1][:7] for fid in images.fids]
                     for query in query_set.fids])
    means = np.stack([embs[mask].mean(axis=0) for mask in same])
    aps, _ = naive(query_set, means, *read(market, 'test'))
    assert results['aps'] == pytest.approx(aps[~np.isnan(aps)].tolist(), abs=1e-6)


def test_reranking(market):
    _, _, plain = evaluate(market)
    _, _, results = evaluate(market, '--rerank', '--rerank_k1', 12, '--workers', 2)
    queries, gallery = read(market, 'query'), read(market, 'test')
    how = reranking.k_reciprocal(queries[1], gallery[1], 'euclidean', 12, 6, 0.3)
    ranks = ranking.rank(queries[1], queries[0], gallery[1], gallery[0], excluders.load('market1501'), 'euclidean',
                         reranking=how)
    assert results['mAP'] == pytest.approx(np.nanmean(ranks.ap_sklearn)) and results['mAP'] > plain['mAP']


def test_files_of_the_original_and_of_another_width(market, tmp_path):
    for name in ('query', 'test'):
        dataset, embs = read(market, name)
        write_dataset(tmp_path, name, dataset, embs)
        with h5py.File(tmp_path / f'{name}.h5', 'w') as file:
            file['emb'] = embs.astype(np.float64)
    assert evaluate(tmp_path)[2]['mAP'] == evaluate(market)[2]['mAP']
    with h5py.File(tmp_path / 'query.h5', 'w') as file:
        file['emb'] = np.ones((60, 17), np.float32)
    assert_one_sentence(run_script('evaluate.py', *arguments(tmp_path)), '17 dimensions', '16', 'same model')


def test_gallery_smaller_than_ten(tmp_path):
    write_set(tmp_path, 'query', 4, 1, seed=1)
    write_set(tmp_path, 'test', 3, 1, seed=5)
    stdout, _, results = evaluate(tmp_path)
    assert len(results['CMC']) == 3 and SUMMARY.fullmatch(stdout.splitlines()[-1])


def test_pooled_tracklets(tmp_path):
    dataset = Dataset('', np.array(list('aabb'), object), np.array([f'{i}.jpg' for i in range(4)], object),
                      np.array(['t1', 't1', 't1', 't1'], object))
    for name in ('query', 'test'):
        (tmp_path / f'{name}.csv').write_text(''.join(f'{pid},{name}{fid},t1\n' for pid, fid in
                                                      zip(dataset.pids, dataset.fids)))
        pooled = load_dataset(tmp_path / f'{name}.csv').first_frames()
        with EmbeddingWriter(tmp_path / f'{name}.h5', pooled, 2, (), {}, pooled=True) as writer:
            writer.append(np.eye(2))
    _, _, results = evaluate(tmp_path, '--excluder', 'diagonal')
    assert results['mAP'] == 1 and [query['fid'] for query in results['queries']] == ['query0.jpg', 'query2.jpg']


def test_compare(market, tmp_path):
    _, _, good = evaluate(market)
    for name in ('query', 'test'):
        dataset, embs = read(market, name)
        random = np.random.default_rng(4)
        write_dataset(tmp_path, name, dataset, (embs + random.standard_normal(embs.shape)).astype(np.float32))
    _, _, bad = evaluate(tmp_path)
    done = run_script('evaluate.py', '--compare', tmp_path / 'results.json', market / 'results.json')
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith('mAP, scikit-learn'))
    assert f'{bad["mAP"]:.2%}' in line and f'{good["mAP"]:.2%}' in line and line.endswith('better')
    assert f'{good["mAP"] - bad["mAP"]:+.2%}' in line
    same = run_script('evaluate.py', '--compare', market / 'results.json', market / 'results.json')
    assert same.stdout.count('may be noise') == 6


def test_interval_covers_the_truth_as_often_as_it_says():
    """Scores of persons with a mean of 0.5, and the queries of a person much alike."""
    covered = []
    for seed in range(30):
        random = np.random.default_rng(seed)
        pids = np.repeat(np.arange(80), random.integers(1, 9, 80))
        scores = random.normal(0.5, 0.2, 80)[pids] + random.normal(0, 0.02, len(pids))
        with mock.patch.object(bootstrap, 'SAMPLES', 300):
            low, high = bootstrap.interval(pids, scores[:, None])
        covered.append(low[0] <= 0.5 <= high[0])
    assert 0.85 <= np.mean(covered) <= 1


# --- What cannot be ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('more, parts', [
    (['--excluder', 'nonsense'], ['--excluder', 'nonsense']),
    (['--excluder', 'regex:('], ['--excluder', 'regular expression']),
    (['--excluder', r'regex:(?P<pid>x)(?P<cid>y)'], ['_c', '(?P<pid>x)(?P<cid>y)']),
    (['--metric', 'manhattan'], ['--metric', 'manhattan']),
    (['--batch_size', '0'], ['--batch_size']),
    (['--filename', '/no/such/folder/x.json'], ['/no/such/folder']),
    (['--multi_query_dataset', 'x.csv'], ['--multi_query_embeddings']),
    (['--excluder', 'diagonal', '--by_camera'], ['--by_camera', 'diagonal']),
    (['--query_dataset', '/no/such.csv'], ['/no/such.csv']),
    (['--query_embeddings', '/no/such.h5'], ['/no/such.h5']),
    (['--query_embeddings', __file__], ['test_evaluate.py', 'HDF5']),
])
def test_one_sentence_and_no_traceback(market, more, parts):
    assert_one_sentence(run_script('evaluate.py', *arguments(market, *more)), *parts)


def test_required_flags_are_named():
    done = run_script('evaluate.py', '--metric', 'euclidean')
    assert_one_sentence(done, '--excluder', '--query_dataset', '--gallery_embeddings', status=2)


def test_swapped_and_broken_files(market, tmp_path):
    swapped = run_script('evaluate.py', *arguments(market, '--query_embeddings', market / 'test.h5',
                                                   '--gallery_embeddings', market / 'query.h5'))
    assert_one_sentence(swapped, 'rows', 'swapped')

    dataset, embs = read(market, 'test')
    embs[[17, 201], 3] = np.nan, np.inf
    save_embeddings(tmp_path / 'broken.h5', dataset, embs)
    broken = run_script('evaluate.py', *arguments(market, '--gallery_embeddings', tmp_path / 'broken.h5'))
    assert_one_sentence(broken, 'broken.h5', 'NaN', '17, 201')

    whole = (market / 'test.h5').read_bytes()
    (tmp_path / 'cut.h5').write_bytes(whole[:len(whole) // 2])
    cut = run_script('evaluate.py', *arguments(market, '--gallery_embeddings', tmp_path / 'cut.h5', '--filename',
                                               tmp_path / 'results.json'))
    assert_one_sentence(cut, 'cut.h5', 'truncated')
    assert not (tmp_path / 'results.json').exists()


def test_no_query_with_a_match(tmp_path):
    write_set(tmp_path, 'query', 5, 1, seed=1)
    write_set(tmp_path, 'test', 5, 1, seed=2, junk=5)
    assert_one_sentence(run_script('evaluate.py', *arguments(tmp_path)), 'No query', 'match')


@pytest.mark.parametrize('content', ['', '[]', '{"mAP": 0.5, "CMC": [1.0], "aps": [0.5]}',
                                     '{"queries": [{"fid": 1}], "parameters": {}}', '{"queries": 3, "parameters": []}'])
def test_compare_with_what_is_no_result(tmp_path, content):
    path = tmp_path / 'other.json'
    path.write_text(content)
    assert_one_sentence(run_script('evaluate.py', '--compare', path, path), 'other.json', 'results')


def test_heavy_libraries_stay_out():
    code = ('import runpy, sys; sys.argv = ["evaluate.py", *sys.argv[1:]]\n'
            'try: runpy.run_path("evaluate.py", run_name="__main__")\n'
            'except SystemExit: pass\n'
            'print([name for name in ("tensorflow", "keras", "pandas", "sklearn", "scipy") if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code, '--help'], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == '[]' and 'h5py' not in done.stdout, done.stderr

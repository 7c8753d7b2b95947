"""evaluate.py as its user runs it: files in, JSON and a summary line out, and one sentence where that cannot be."""
import contextlib
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from unittest import mock

import h5py
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import evaluate as evaluate_script
from conftest import ROOT, assert_one_sentence, run_main, run_script, wait_until
from tripletreid import exclusion
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.embeddings import reader
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.with_dataset import open_gallery
from tripletreid.embeddings.writer import EmbeddingWriter, FileContent, save_embeddings
from tripletreid.errors import InputError
from tripletreid.evaluation import bootstrap, ranking, reranking, verification
from tripletreid.evaluation.results import read_evaluation
from tripletreid.evaluation.retrieval import Retrieval
from tripletreid.files import written_whole

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
    """Return standard output and error of a successful run, and its JSON."""
    done = run_script('evaluate.py', *arguments(folder, *more, '--filename', folder / 'results.json'))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, json.loads((folder / 'results.json').read_text())


def naive(query_set, query_embs, gallery_set, gallery_embs, keep=True):
    """AP by scikit-learn, and rank of the first match, of each query that has a match."""
    ignored = exclusion.load('market1501')(gallery_set.fids)(query_set.fids)
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
    assert stderr.count('warning') == 1 and f'{(~matched).sum()} of 60 queries have no match' in stderr


@pytest.mark.parametrize('first, second, words', [
    ({'checkpoint_sha256': 'a', 'weights': None}, {'checkpoint_sha256': 'a'}, None),
    ({'checkpoint_sha256': 'a', 'weights': None}, {'checkpoint_sha256': 'a', 'weights': 'raw'}, 'weights is None and raw'),
    ({'checkpoint_sha256': 'b'}, {'checkpoint_sha256': 'a'}, 'checkpoint_sha256 is b and a'),
    ({'flip_augment': True, 'aggregator': 'mean'}, {'flip_augment': False, 'aggregator': None},
     'aggregator is mean and None, flip_augment is True and False'),
    ({'mixed_precision': 'bfloat16'}, {'flip_augment': False}, 'mixed_precision is bfloat16 and none'),
    ({'sizes': [256, 128]}, {'sizes': [128, 64]}, 'sizes is [256, 128] and [128, 64]'),
    ({'pool_tracklets': 'mean'}, {'dataset': 'x.csv'}, 'pool_tracklets is mean and None'),
    ({'resize': 'bicubic'}, {'dataset': 'x.csv'}, 'resize is bicubic and tf1'),
    ({'checkpoint_sha256': 'a', 'checkpoint': 'x', 'filename': 'a.h5', 'batch_size': 1, 'metric': 'cosine'},
     {'checkpoint_sha256': 'a', 'checkpoint': 'y', 'filename': 'b.h5', 'batch_size': 2, 'metric': 'euclidean'}, None),
    ({}, {'weights': 'raw', 'flip_augment': True}, None), ({}, {}, None)])
def test_embeddings_that_were_made_differently(market, tmp_path, capsys, first, second, words):
    """All that the files record counts, except where they are and who did the work; the original's record nothing."""
    dataset, embs = read(market, 'query')
    for name, parameters in (('first', first), ('second', second)):
        save_embeddings(tmp_path / f'{name}.h5', dataset, embs, parameters)
    with Embeddings(tmp_path / 'first.h5') as queries, Embeddings(tmp_path / 'second.h5') as gallery:
        if words is None:
            evaluate_script.check_same_making(queries, gallery, allow_different=False)
        else:
            with pytest.raises(InputError, match='first.h5 and .*second.h5 were made differently: ' + re.escape(words)):
                evaluate_script.check_same_making(queries, gallery, allow_different=False)
        evaluate_script.check_same_making(queries, gallery, allow_different=True)
    assert capsys.readouterr().err.count('warning') == (words is not None)


def test_scores_of_each_query(market):
    """Every score of scores/ has its mean, interval, expectation by chance and values; an older file gets them too."""
    stdout, _, results = evaluate(market)
    firsts = np.array([query['first_match_rank'] or 0 for query in results['queries']])
    score = results['scores']['rank-5']
    assert score['queries'] == [None if rank == 0 else float(rank <= 5) for rank in firsts]
    assert score['mean'] == pytest.approx(results['CMC'][4])
    low, high = results['scores']['mINP']['interval']
    assert low < results['scores']['mINP']['mean'] == results['mINP'] < high
    assert results['scores']['mAP_sklearn']['mean'] == results['mAP'] and 'mAP_sklearn' in stdout
    queries, gallery = read(market, 'query'), read(market, 'test')
    ignored = exclusion.load('market1501')(gallery[0].fids)(queries[0].fids)
    same = queries[0].pids[:, None] == gallery[0].pids
    matches, valid = (same & ~ignored).sum(axis=1), (~ignored).sum(axis=1)
    assert results['scores']['rank-1']['chance'] == pytest.approx(np.mean((matches / valid)[matches > 0]))

    new = read_evaluation(str(market / 'results.json'))
    (market / 'old.json').write_text(json.dumps({key: value for key, value in results.items() if key != 'scores'}))
    old = read_evaluation(str(market / 'old.json'))
    for name, values in new.score_values.items():
        np.testing.assert_allclose(old.score_values[name], values)
        assert old.scores[name].mean == pytest.approx(new.scores[name].mean)


def test_a_score_of_ones_own_is_one_file(market, tmp_path):
    """The example of docs/extending.md is printed, stored and compared; nothing else is changed."""
    for name in ('tripletreid', 'scores', 'excluders', 'distances'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'evaluate.py', tmp_path)
    text = (ROOT / 'docs' / 'extending.md').read_text(encoding='utf-8')
    example = re.search(r'```python\n("""scores/r_prec.*?)```', text, re.DOTALL)[1]
    (tmp_path / 'scores' / 'r_precision.py').write_text(example)

    def run(*arguments):
        done = subprocess.run([sys.executable, 'evaluate.py', *map(str, arguments)], cwd=tmp_path, capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return next(line for line in done.stdout.splitlines() if line.startswith('R-precision'))

    path = tmp_path / 'own.json'
    line = run(*arguments(market, '--filename', path))
    (query_set, queries), (gallery_set, gallery) = read(market, 'query'), read(market, 'test')
    ignored = exclusion.load('market1501')(gallery_set.fids)(query_set.fids)
    expected, chance = [], []
    for q, pid in enumerate(query_set.pids):
        distances = ((queries[q].astype(float) - gallery[~ignored[q]]) ** 2).sum(axis=1)
        matches = gallery_set.pids[~ignored[q]] == pid
        if matches.any():
            expected.append(matches[np.argsort(distances, kind='stable')][:matches.sum()].mean())
            chance.append(matches.mean())
    stored = json.loads(path.read_text())['scores']['R-precision']
    assert [value for value in stored['queries'] if value is not None] == pytest.approx(expected)
    assert stored['mean'] == pytest.approx(np.mean(expected)) and stored['chance'] == pytest.approx(np.mean(chance))
    assert f'{np.mean(expected):.2%}' in line and f'{np.mean(chance):.2%}' in line
    assert run('--compare', path, path).endswith('the same for every query')


def test_cameras_that_are_spelled_differently_are_warned_of(tmp_path):
    write_set(tmp_path, 'query', 20, 4, seed=1)
    dataset, embs = write_set(tmp_path, 'test', 60, 4, seed=2)
    assert 'shares identity and camera' not in evaluate(tmp_path)[1]
    fids = np.array([fid.replace('_c', '_c0') for fid in dataset.fids], object)
    write_dataset(tmp_path, 'test', Dataset('', dataset.pids, fids), embs)
    stderr = evaluate(tmp_path)[1]
    assert 'no query shares identity and camera with any gallery image' in stderr and 'in 01 and ' in stderr


def test_equal_embeddings_of_many_queries_are_warned_of(market, tmp_path):
    shutil.copytree(market, tmp_path, dirs_exist_ok=True)
    dataset, embs = read(market, 'query')
    for equal, is_said in ((3, False), (4, True)):  # 5 % of 60 queries.
        embs[:equal] = 0
        write_dataset(tmp_path, 'query', dataset, embs)
        done = run_main('evaluate.py', *arguments(tmp_path))
        assert (f'warning: {equal} of 60 queries have one and the same embedding' in done.stderr) == is_said


def test_training_images_in_an_evaluation_are_warned_of(market, tmp_path):
    (tmp_path / 'root').mkdir()
    trained = {'train_set': str(market / 'query.csv'), 'image_root': str(tmp_path)}
    (tmp_path / 'root' / 'args.json').write_text(json.dumps(trained))
    for name in ('query', 'test'):
        dataset, embs = read(market, name)
        (tmp_path / f'{name}.csv').write_bytes((market / f'{name}.csv').read_bytes())
        save_embeddings(tmp_path / f'{name}.h5', dataset, embs, {'experiment_root': str(tmp_path / 'root'),
                                                               'image_root': str(tmp_path)})
    done = run_main('evaluate.py', *arguments(tmp_path))
    assert 'warning: 60 of 60 images of the query are training images of ' in done.stderr
    assert 'of the gallery are training' not in done.stderr


def test_another_metric_than_the_run_has_is_warned_of(market, tmp_path):
    dataset, embs = read(market, 'query')
    for name in ('query', 'test'):
        dataset, embs = read(market, name)
        write_dataset(tmp_path, name, dataset, embs)
        save_embeddings(tmp_path / f'{name}.h5', dataset, embs, {'metric': 'cosine'})
    assert 'the distance is euclidean here, and cosine in the training run' in evaluate(tmp_path)[1]
    assert 'in the training run' not in evaluate(tmp_path, '--metric', 'cosine')[1]


def test_identities_held_out_of_the_gallery(market):
    """Their queries have no match, all else stays; the threshold at a FAR is read back."""
    _, _, plain = evaluate(market)
    stdout, _, results = evaluate(market, '--hold_out', 0.5, '--verification')
    held_out = {query['pid'] for query in results['queries'] if not query['matches']}
    gallery_pids = set(read(market, 'test')[0].pids)
    assert len(held_out & gallery_pids) == 6 and len({query['pid'] for query in plain['queries']} & gallery_pids) == 12
    assert results['counts']['gallery'] == sum(pid not in held_out for pid in read(market, 'test')[0].pids)
    (point,) = results['open_set']['dir_at_far']
    low, high = point['interval']
    assert low <= point['dir'] <= high and f'{point["dir"]:9.2%}' in stdout
    path = str(market / 'results.json')
    assert verification.threshold_at_far(path, 0.1, 'euclidean').threshold == point['threshold']
    with pytest.raises(InputError, match='no threshold at a FAR of 0.01: it has thresholds at 1e-01'):
        verification.threshold_at_far(path, 0.01)
    assert_one_sentence(run_main('evaluate.py', *arguments(market, '--hold_out', 0.01, '--verification')),
                        '--hold_out 0.01 removes 0 of the 12 identities')
    assert_one_sentence(run_main('evaluate.py', *arguments(market, '--hold_out', 0.5)), '--verification', status=2)


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
            # The worker that was started last is the one whose end is most easily overlooked.
            os.kill(process.pid if struck == 'parent' else max(workers), getattr(signal, name))
        # A process that still has the pipe open would block this.
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
    except (FileNotFoundError, ProcessLookupError):  # The second one if it ends during the check.
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


def test_table_of_many_cameras_fits_a_terminal(tmp_path):
    random = np.random.default_rng(0)
    expected = {}
    for name, count in (('query', 150), ('test', 600)):
        pids, cameras = random.integers(0, 5, count), random.choice([*range(1, 11), *range(100, 113)], count)
        fids = [f'{pid:04}_c{camera}s1_{row}.jpg' for row, (pid, camera) in enumerate(zip(pids, cameras))]
        dataset = Dataset('', np.char.zfill(pids.astype(str), 4).astype(object), np.array(fids, object))
        write_dataset(tmp_path, name, dataset, random.standard_normal((count, 4)).astype(np.float32))
        expected[name] = {str(camera) for camera in cameras}
    stdout, _, results = evaluate(tmp_path, '--by_camera')
    for name, side in (('query', 'query_camera'), ('test', 'gallery_camera')):
        assert {entry[side] for entry in results['by_camera']} == expected[name] and len(expected[name]) == 23
    lines = stdout.splitlines()
    first = next(row for row, line in enumerate(lines) if line.startswith('mAP by camera'))
    table = lines[first + 1:first + 12]
    assert max(map(len, table)) <= 80 and len(table[0].split()) == 10
    cells = {(entry['query_camera'], entry['gallery_camera']): f'{entry["mAP"]:.1%}' for entry in results['by_camera']}
    for line in table[1:]:
        assert line.split()[1:] == [cells.get((line.split()[0], camera), '-') for camera in table[0].split()]
    assert f'of {len(cells)} pairs' in lines[first + 12] and '--filename' in lines[first + 12]


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
    _, _, alone = evaluate(market, '--rerank', '--rerank_k1', 12)
    _, _, results = evaluate(market, '--rerank', '--rerank_k1', 12, '--workers', 2)
    assert all(alone[key] == results[key] for key in set(alone) - {'parameters', 'versions'})
    queries, gallery = read(market, 'query'), read(market, 'test')
    how = reranking.k_reciprocal(queries[1], gallery[1], 'euclidean', 12, 6, 0.3)
    ranks = ranking.rank(Retrieval(queries[1], queries[0], gallery[1], gallery[0], exclusion.load('market1501'),
                                   'euclidean', reranking=how))
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
    assert_one_sentence(run_main('evaluate.py', *arguments(tmp_path)), '17 dimensions', '16', 'same model')


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
        with EmbeddingWriter(tmp_path / f'{name}.h5', FileContent(pooled, 2, {}, pooled=True)) as writer:
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
    done = run_main('evaluate.py', '--compare', tmp_path / 'results.json', market / 'results.json')
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith('mAP_sklearn'))
    assert f'{bad["mAP"]:.2%}' in line and f'{good["mAP"]:.2%}' in line and line.endswith('better')
    assert f'{good["mAP"] - bad["mAP"]:+.2%}' in line
    same = run_main('evaluate.py', '--compare', market / 'results.json', market / 'results.json')
    assert same.stdout.count('the same for every query') == 7


def test_compare_says_what_is_different(market, tmp_path):
    evaluate(market, '--rerank', '--rerank_k1', 12)
    (market / 'results.json').rename(tmp_path / 'first.json')
    evaluate(market, '--rerank', '--rerank_lambda', 0.5, '--use_market_ap')
    second = json.loads((market / 'results.json').read_text())
    second['gallery_hash'] = 'of another one'
    second['queries'][7]['pid'] = 'renamed'
    (tmp_path / 'second.json').write_text(json.dumps(second))

    def notes():
        done = run_main('evaluate.py', '--compare', tmp_path / 'first.json', tmp_path / 'second.json')
        return [line for line in done.stdout.splitlines() if line.startswith('Note')]

    assert notes() == ['Note: use_market_ap is False in the first and True in the second.',
                       'Note: rerank_k1 is 12 in the first and 20 in the second.',
                       'Note: rerank_lambda is 0.3 in the first and 0.5 in the second.',
                       'Note: 1 queries have another identity in the second than in the first, e.g. '
                       f'{second["queries"][7]["fid"]}.',
                       'Note: the first and the second are of different galleries.']
    # A result without re-ranking has no re-ranking parameters; an older file has no hash.
    del second['gallery_hash']
    second['queries'] = json.loads((market / 'results.json').read_text())['queries']
    second['parameters'].update(rerank=False, use_market_ap=False)
    (tmp_path / 'second.json').write_text(json.dumps(second))
    assert notes() == ['Note: rerank is True in the first and False in the second.']


@pytest.mark.parametrize('identities, persons', [(5, 'equal'), (7, 'unequal'), (30, 'unequal')])
def test_interval_covers_the_truth_as_often_as_it_says(identities, persons):
    """Scores near 1 and skewed, with similar queries per person: the truth is 0.85, and for differences 0.05."""
    random = np.random.default_rng(identities)
    covered = []
    with mock.patch.object(bootstrap, 'SAMPLES', 400):
        for _ in range(300):
            queries = 4 if persons == 'equal' else random.integers(1, 9, identities)
            pids = np.repeat(np.arange(identities), queries)
            ability = random.beta(3.4, 0.6, identities).clip(1e-3, 1 - 1e-3)[pids]
            score = random.beta(12 * ability, 12 * (1 - ability))
            difference = random.normal(0.05, 0.03, identities)[pids] + random.normal(0, 0.05, len(pids))
            (low, high), = bootstrap.interval(pids, score[:, None])
            (lower, upper), = bootstrap.interval(pids, difference[:, None], lowest=-1)
            assert 0 <= low <= score.mean() <= high <= 1 and -1 <= lower <= difference.mean() <= upper <= 1
            covered.append((low <= 0.85 <= high, lower <= 0.05 <= upper))
    # With 300 draws and 95 % inside, 4.5 standard deviations less are 89 %; percentiles reach 77 and 82 % with five persons.
    assert (np.mean(covered, axis=0) > 0.89).all() and (np.mean(covered, axis=0) < 1).all()


def test_interval_against_a_loop():
    """One draw after the other, with standard errors by the jackknife over persons, which are nearly equal."""
    random = np.random.default_rng(3)
    persons = [random.beta(8, 1, random.integers(1, 9)) for _ in range(30)]

    def mean_and_error(persons):
        mean = np.concatenate(persons).mean()
        others = [np.concatenate(persons[:i] + persons[i + 1:]).mean() for i in range(len(persons))]
        return mean, np.sqrt((len(persons) - 1) * np.var(others))

    mean, error = mean_and_error(persons)
    drawn = (mean_and_error([persons[i] for i in random.integers(30, size=30)]) for _ in range(1000))
    off = sorted((other - mean) / error for other, error in drawn)
    symmetric = sorted(map(abs, off))[950]
    expected = mean - max(symmetric, off[975]) * error, mean + max(symmetric, -off[24]) * error
    pids = np.repeat(np.arange(30), [len(person) for person in persons])
    (low, high), = bootstrap.interval(pids, np.concatenate(persons)[:, None])
    assert (low - mean, high - mean) == pytest.approx((expected[0] - mean, expected[1] - mean), rel=0.1)


def test_too_few_identities_to_say(tmp_path):
    def ends(*persons):
        pids = np.repeat(np.arange(len(persons)), [len(person) for person in persons])
        return bootstrap.interval(pids, np.concatenate(persons)[:, None])

    assert ends([0.1, 0.9, 0.5], [0.2], [0.8], [0.4]) == [None]
    assert ends([0.1, 0.9, 0.5], [0.2], [0.8], [0.4], [0.7]) != [None]
    assert ends([1, 1], [1], [1], [1], [1], [1]) == [None]
    assert ends(*[[1]] * 500, [0]) == [None], 'that another person would fail is anybody\'s guess'
    assert ends(*[[0.3, 0.4], [0.4, 0.3]] * 10) == [None], 'no spread except rounding'

    for noise in (2.0, 1.5):
        write_set(tmp_path, 'query', 3, 1, seed=1, noise=noise)
        write_set(tmp_path, 'test', 40, 6, seed=5, noise=noise)
        stdout, _, results = evaluate(tmp_path)
        assert results['confidence'] == {'level': 0.95, 'samples': 1000, 'seed': 0, 'mAP': None, 'top1': None}
        assert stdout.count('too few identities to say') == 7 and SUMMARY.fullmatch(stdout.splitlines()[-1])
        (tmp_path / 'results.json').rename(tmp_path / f'{noise}.json')
    done = run_main('evaluate.py', '--compare', tmp_path / '2.0.json', tmp_path / '1.5.json')
    assert '3 queries of 1 identities' in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith('mAP_sklearn'))
    assert line.endswith('too few identities to say') and 'better' not in done.stdout


# --- Memory -----------------------------------------------------------------------------------------------------------

def test_names_of_the_gallery_stay_in_the_file(tmp_path, monkeypatch):
    """Except for a cache of a few blocks, which is off here."""
    monkeypatch.setattr(reader, 'CACHED_BLOCKS', 0)
    count = 40_000
    (tmp_path / 'test.csv').write_text(''.join(
        f'{row % 50},"long folder/{row % 50}_c{row % 6}s1_{row:09}_ü.jpg"\n' for row in range(count)))
    dataset = load_dataset(tmp_path / 'test.csv')
    save_embeddings(tmp_path / 'test.h5', dataset, np.zeros((count, 2), np.float32))
    tracemalloc.start()
    embeddings, gallery_set = open_gallery([tmp_path / 'test.h5'], tmp_path / 'test.csv')
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10 * count, f'{held / count:.1f} bytes a row'

    assert len(gallery_set) == count and gallery_set.path == dataset.path
    assert gallery_set.pids.tolist() == dataset.pids.tolist() and list(gallery_set.fids) == dataset.fids.tolist()
    assert gallery_set.fids[17] == dataset.fids[17] and gallery_set.fids[-1] == dataset.fids[-1]
    for rows in (np.array([5, 3, 19_000, 3]), np.zeros(0, int), np.arange(count) % 7 == 0):
        assert gallery_set.fids[rows].tolist() == dataset.fids[rows].tolist()
    part = gallery_set.fids[100:200][10:30]
    assert list(part) == dataset.fids[110:130].tolist() and part[[2]].tolist() == [dataset.fids[112]]
    assert list(pickle.loads(pickle.dumps(part))) == list(part)
    assert gallery_set.content_hash() == dataset.content_hash()
    assert gallery_set.take([2, 1]).fids.tolist() == dataset.take([2, 1]).fids.tolist()


def test_gallery_of_other_rows(tmp_path):
    dataset, embs = write_set(tmp_path, 'test', 30, 5, seed=1)
    lines = (tmp_path / 'test.csv').read_text().splitlines(keepends=True)
    for changed, part in ((lines[:20], 'has 30 rows, but'), (lines * 2, 'has 60'), ([*lines[:7], '1,x.jpg\n', *lines[8:]],
                          f'row 7 (counted from 0) is {dataset.fids[7]} there and x.jpg in the csv file')):
        (tmp_path / 'test.csv').write_text(''.join(changed))
        with pytest.raises(InputError) as error:
            open_gallery([tmp_path / 'test.h5'], tmp_path / 'test.csv')
        assert part in str(error.value)


# --- Impossible input --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('more, parts', [
    (['--excluder', 'nonsense'], ['--excluder', 'nonsense']),
    (['--excluder', 'regex:('], ['--excluder', 'regular expression']),
    (['--excluder', r'regex:(?P<pid>x)(?P<cid>y)'], ['_c', '(?P<pid>x)(?P<cid>y)']),
    (['--metric', 'manhattan'], ['--metric', 'manhattan']),
    (['--batch_size', '0'], ['--batch_size']),
    (['--filename', '/no/such/folder/x.json'], ['/no/such/folder']),
    (['--filename', '/dev/full'], ['--filename', '/dev/full is no file, which cannot be replaced']),
    (['--filename', '/'], ['--filename', '/ is a folder']),
    (['--filename', ''], ['--filename', 'empty value']),
    (['--rerank_k1', '20'], ['--rerank_k1 needs --rerank']),
    (['--rerank_lambda', '0.3', '--rerank_k2', '6'], ['needs --rerank']),
    (['--compare', 'a.json', 'b.json'], ['--excluder', '--query_dataset', '--metric', 'without effect', '--compare']),
    (['--multi_query_dataset', 'x.csv'], ['--multi_query_embeddings']),
    (['--excluder', 'diagonal', '--by_camera'], ['--by_camera', 'diagonal']),
    (['--query_dataset', '/no/such.csv'], ['/no/such.csv']),
    (['--query_embeddings', '/no/such.h5'], ['/no/such.h5']),
    (['--query_embeddings', __file__], ['test_evaluate.py', 'HDF5']),
])
def test_one_sentence_and_no_traceback(market, more, parts):
    assert_one_sentence(run_main('evaluate.py', *arguments(market, *more)), *parts)


def test_required_flags_are_named():
    done = run_script('evaluate.py', '--metric', 'euclidean')
    assert_one_sentence(done, '--excluder', '--query_dataset', '--gallery_embeddings', status=2)


def test_swapped_and_broken_files(market, tmp_path):
    swapped = run_main('evaluate.py', *arguments(market, '--query_embeddings', market / 'test.h5',
                                                 '--gallery_embeddings', market / 'query.h5'))
    assert_one_sentence(swapped, 'rows', 'swapped')

    dataset, embs = read(market, 'test')
    embs[[17, 201], 3] = np.nan, np.inf
    save_embeddings(tmp_path / 'broken.h5', dataset, embs)
    broken = run_main('evaluate.py', *arguments(market, '--gallery_embeddings', tmp_path / 'broken.h5'))
    assert_one_sentence(broken, 'broken.h5', 'NaN', '17, 201')

    whole = (market / 'test.h5').read_bytes()
    (tmp_path / 'cut.h5').write_bytes(whole[:len(whole) // 2])
    cut = run_main('evaluate.py', *arguments(market, '--gallery_embeddings', tmp_path / 'cut.h5', '--filename',
                                             tmp_path / 'results.json'))
    assert_one_sentence(cut, 'cut.h5', 'truncated')
    assert not (tmp_path / 'results.json').exists()


def test_no_query_with_a_match(tmp_path):
    write_set(tmp_path, 'query', 5, 1, seed=1)
    write_set(tmp_path, 'test', 5, 1, seed=2, junk=5)
    assert_one_sentence(run_main('evaluate.py', *arguments(tmp_path)), 'No query', 'match')


def test_compare_takes_no_flags_of_an_evaluation(market):
    for flag in (['--filename', 'x.json'], ['--workers', 1], ['--by_camera']):
        done = run_main('evaluate.py', '--compare', 'a.json', 'b.json', *flag)
        assert_one_sentence(done, f'{flag[0]} without effect', status=2)


@pytest.mark.parametrize('metric', ['euclidean', 'cityblock'])
def test_embeddings_that_are_too_large(market, tmp_path, metric):
    for role, name in (('query', 'query'), ('gallery', 'test')):
        dataset, embs = read(market, name)
        embs[5] = 1e38
        save_embeddings(tmp_path / f'{name}.h5', dataset, embs)
        done = run_script('evaluate.py', *arguments(market, '--metric', metric, f'--{role}_embeddings',
                                                    tmp_path / f'{name}.h5'))
        assert_one_sentence(done, '1e+38', 'too large')
        assert len(done.stderr.splitlines()) == 1, 'and no warning of NumPy'


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name, kind in (('pipe', 'pipe is no file'), ('', 'is a folder')):
        with pytest.raises(InputError, match=f'{kind}, which cannot be replaced'):
            with written_whole(tmp_path / name) as temporary:
                pathlib.Path(temporary).touch()
    assert (tmp_path / 'pipe').is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('content', ['', '[]', '{"mAP": 0.5, "CMC": [1.0], "aps": [0.5]}',
                                     '{"queries": [{"fid": 1}], "parameters": {}}', '{"queries": 3, "parameters": []}'])
def test_compare_with_what_is_no_result(tmp_path, content):
    path = tmp_path / 'other.json'
    path.write_text(content)
    assert_one_sentence(run_main('evaluate.py', '--compare', path, path), 'other.json')


def test_numbers_that_no_evaluation_has(market, tmp_path):
    _, _, results = evaluate(market)
    matched = next(row for row, query in enumerate(results['queries']) if query['matches'])
    path = tmp_path / 'changed.json'
    for value in (float('nan'), 1e308, -1, 1 << 60, '0.5', [], None):
        for key in ('ap', 'ap_market1501', 'first_match_rank', 'last_match_rank', 'matches'):
            changed = json.loads(json.dumps(results))
            changed['queries'][matched][key] = value
            path.write_text(json.dumps(changed))
            with pytest.raises(InputError, match='changed.json is not an evaluation'):
                read_evaluation(path)
        for key, place in (('mAP', 'mAP'), ('mINP', 'mINP'), ('CMC', 3)):
            changed = json.loads(json.dumps(results))
            (changed['CMC'] if key == 'CMC' else changed)[place] = value
            path.write_text(json.dumps(changed))
            with pytest.raises(InputError, match='changed.json is not an evaluation'):
                read_evaluation(path)
    assert_one_sentence(run_main('evaluate.py', '--compare', market / 'results.json', path), 'changed.json')


def test_benchmark_reads_a_process_that_writes_much(tmp_path):
    """Standard error is larger than a pipe while standard output is still open."""
    (tmp_path / 'child.py').write_text('import sys; sys.stderr.write("#" * 1_000_000); print("done")')
    code = f'import runpy; print(runpy.run_path("benchmarks/evaluate.py")["run"]([{str(tmp_path / "child.py")!r}]))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("'done')"), done.stderr


def test_heavy_libraries_stay_out():
    code = ('import runpy, sys; sys.argv = ["evaluate.py", *sys.argv[1:]]\n'
            'try: runpy.run_path("evaluate.py", run_name="__main__")\n'
            'except SystemExit: pass\n'
            'print([name for name in ("tensorflow", "keras", "pandas", "sklearn", "scipy") if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code, '--help'], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == '[]' and 'h5py' not in done.stdout, done.stderr

"""Video, end to end: tracklets of one to seven frames are trained on, embedded, pooled and evaluated as MARS is."""
import hashlib
import json

import h5py
import numpy as np
import pytest
from PIL import Image

from _people import draw_person
from _runs import Fault, Run, curves, ended_in_one_sentence
from tripletreid.dataset import load_dataset

SUBSETS = {'train': range(1, 7), 'query': range(7, 13), 'test': range(7, 13)}


@pytest.fixture(scope='module')
def mars(tmp_path_factory):
    """Images with MARS's names and the csv files of three subsets, in which frames of tracklets are mixed."""
    root = tmp_path_factory.mktemp('mars')
    random = np.random.default_rng(0)
    backgrounds = random.uniform(0.2, 0.8, (2, 3))
    colours = random.uniform(0, 1, (13, 3, 3))
    for subset, pids in SUBSETS.items():
        rows = []
        for pid in pids:
            for camera in (1, 2) if subset != 'query' else (1,):
                tracklets = {'train': (1, 2), 'query': (1,), 'test': (2,)}[subset]
                for tracklet in tracklets:
                    for frame in range(1, random.integers(2, 9)):
                        name = f'{pid:04}C{camera}T{tracklet:04}F{frame:03}.jpg'
                        pixels = draw_person(random, (32, 16), colours[pid], backgrounds[camera - 1])
                        Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(root / name, quality=95)
                        rows.append(f'{pid:04},{name},C{camera}T{tracklet:04}\n')
        (root / f'{subset}.csv').write_text(''.join(random.permutation(rows)))
    return root


@pytest.fixture(scope='module')
def trained(mars):
    root = mars / 'run'
    run = Run('train.py', '--experiment_root', root, '--train_set', mars / 'train.csv', '--image_root', mars,
              '--model_name', 'mnist', '--head_name', 'fc1024', '--embedding_dim', 8, '--batch_p', 4, '--batch_k', 3,
              '--frames_per_tracklet', 2, '--net_input_height', 32, '--net_input_width', 16, '--train_iterations', 30,
              '--learning_rate', '1e-3', '--detailed_logs')
    assert run.wait() == 0, run.output
    return root


def embed(mars, trained, subset, name, *more):
    run = Run('embed.py', '--experiment_root', trained, '--dataset', mars / f'{subset}.csv', '--filename', name, *more)
    assert run.wait() == 0, run.output
    return trained / name


def test_detailed_logs_hold_the_frames_of_each_tracklet(trained):
    assert np.load(trained / 'log_embs.npy', mmap_mode='r').shape == (30, 12, 8)
    fids = np.load(trained / 'log_fids.npy').reshape(30, 4, 3, 2)
    tracklets = np.char.partition(fids, b'F')[..., 0]
    assert (tracklets == tracklets[..., :1]).all()
    pids = np.char.partition(fids, b'C')[..., 0]
    assert (pids == pids[:, :, :1, :1]).all()


def test_pooled_rows_are_the_mean_of_the_frames(mars, trained):
    augmentation = ('--flip_augment', '--aggregator', 'normalized_mean', '--batch_size', 6)
    frames = embed(mars, trained, 'test', 'frames.h5', *augmentation)
    pooled = embed(mars, trained, 'test', 'pooled.h5', *augmentation, '--pool_tracklets', 'mean')
    dataset = load_dataset(mars / 'test.csv')
    with h5py.File(frames) as frame_file, h5py.File(pooled) as tracklet_file:
        keys = list(dict.fromkeys(zip(dataset.pids, dataset.tracklets)))
        assert tracklet_file['emb'].shape == (12, 8) and tracklet_file['emb_aug'].shape == (2, 12, 8)
        assert list(tracklet_file['tracklets'].asstr()) == [tracklet for _, tracklet in keys]
        for row, (pid, tracklet) in enumerate(keys):
            chosen = (dataset.pids == pid) & (dataset.tracklets == tracklet)
            np.testing.assert_allclose(tracklet_file['emb'][row], frame_file['emb'][chosen].mean(0), atol=1e-6)
            np.testing.assert_allclose(tracklet_file['emb_aug'][:, row], frame_file['emb_aug'][:, chosen].mean(1),
                                       atol=1e-5)
            assert tracklet_file['fids'].asstr()[row] == dataset.fids[chosen][0]


def test_tracklets_are_evaluated_as_rows(mars, trained):
    for subset in ('query', 'test'):
        embed(mars, trained, subset, f'{subset}_pooled.h5', '--pool_tracklets', 'mean')
    evaluated = Run('evaluate.py', '--excluder', 'mars', '--metric', 'euclidean', '--query_dataset', mars / 'query.csv',
                    '--query_embeddings', trained / 'query_pooled.h5', '--gallery_dataset', mars / 'test.csv',
                    '--gallery_embeddings', trained / 'test_pooled.h5', '--filename', mars / 'scores.json')
    assert evaluated.wait() == 0, evaluated.output
    scores = json.loads((mars / 'scores.json').read_text())
    assert scores['counts']['queries'] == 6 and scores['counts']['gallery'] == 12
    assert scores['mAP'] > 0.5
    assert all(query['matches'] == 1 for query in scores['queries'])


def test_without_tracklets_in_the_csv_there_is_nothing_to_pool(mars, trained):
    (mars / 'plain.csv').write_text(''.join(line.rsplit(',', 1)[0] + '\n' for line in open(mars / 'train.csv')))
    ended_in_one_sentence(Run('embed.py', '--experiment_root', trained, '--dataset', mars / 'plain.csv',
                              '--pool_tracklets', 'mean'), 'third column')
    ended_in_one_sentence(Run('train.py', '--experiment_root', mars / 'none', '--train_set', mars / 'plain.csv',
                              '--image_root', mars, '--frames_per_tracklet', '2'), 'third column')


class PrintDevices:
    """Lets a run print the number of devices on which it embeds."""

    def __call__(self):
        from tripletreid.modeling import inference
        embed_files = inference.embed_files

        def printing(*args, strategy, **options):
            print(f'embeds on {strategy.num_replicas_in_sync} devices')
            return embed_files(*args, strategy=strategy, **options)

        inference.embed_files = printing


@pytest.mark.parametrize('devices', (1, 2))
def test_validation_tracklet_file_and_of_images(mars, tmp_path, devices):
    """Two sets, one of them of tracklets, with mirror images: the numbers equal those by embed.py and evaluate.py, which
    compute on one device."""
    for subset in ('query', 'test'):
        lines = (mars / f'{subset}.csv').read_text().splitlines()
        (tmp_path / f'frames_{subset}.csv').write_text(''.join(line.rsplit(',', 1)[0] + '\n' for line in lines[::2]))
    sets = {'query': (mars / 'query.csv', mars / 'test.csv', 'mars'),
            'frames_query': (tmp_path / 'frames_query.csv', tmp_path / 'frames_test.csv', 'diagonal')}
    queries, galleries, excluders = zip(*sets.values())
    root = tmp_path / 'run'
    run = Run('train.py', '--experiment_root', root, '--train_set', mars / 'train.csv', '--image_root', mars,
              '--model_name', 'mnist', '--head_name', 'fc1024', '--embedding_dim', 8, '--batch_p', 4, '--batch_k', 2,
              '--frames_per_tracklet', 2, '--net_input_height', 32, '--net_input_width', 16, '--train_iterations', 4,
              '--learning_rate', '1e-3', '--eval_frequency', 2, '--eval_query', *queries, '--eval_gallery', *galleries,
              '--eval_excluder', *excluders, '--eval_flip', '--eval_metric', 'cityblock',
              *(['--distribute', 'mirrored', '--devices', 2] if devices == 2 else []),
              fault=Fault(PrintDevices(), 'start'))
    assert run.wait() == 0, run.output
    assert run.output.count(f'embeds on {devices} devices') == 8 == run.output.count('embeds on')

    noted = json.loads((root / 'checkpoint-best').read_text())
    assert [entry['step'] for entry in noted['validations']] == [2, 4] and 'embed_flags' not in noted
    step, scalars = noted['step'], curves(root)
    assert noted['mAP'] == max(entry['mAP'] for entry in noted['validations'])
    for score in ('mAP', 'top1'):
        assert noted[score] == pytest.approx(np.mean([scores[score] for scores in noted['sets'].values()]))
        for tag, value in ((f'validation_{score}', noted[score]),
                           *((f'validation_{score}/{name}', noted['sets'][name][score]) for name in sets)):
            assert dict(scalars[tag])[step] == np.float32(value).tobytes(), tag
    log = (root / 'train.log').read_text()
    assert (f'iter:{step:6d}, validation mAP: {noted["mAP"]:.2%}, top-1: {noted["top1"]:.2%} (mean of 2 sets)') in log

    for name, (query, gallery, excluder) in sets.items():
        scores = noted['sets'][name]
        flags = f'--checkpoint checkpoint-{step} --flip_augment --aggregator mean'
        assert scores['embed_flags'] == flags + ' --pool_tracklets mean' * (name == 'query')
        assert (f'iter:{step:6d}, validation of {name} mAP: {scores["mAP"]:.2%}, top-1: {scores["top1"]:.2%} '
                f'(embed.py {scores["embed_flags"]})') in log
        if devices == 2 and name == 'frames_query':  # Tested on one device.
            continue
        for csv in (query, gallery):
            embedding = Run('embed.py', '--experiment_root', root, '--dataset', csv, *scores['embed_flags'].split())
            assert embedding.wait() == 0, embedding.output
        evaluated = Run('evaluate.py', '--excluder', excluder, '--metric', 'cityblock', '--query_dataset', query,
                        '--query_embeddings', root / f'{query.stem}_embeddings.h5', '--gallery_dataset', gallery,
                        '--gallery_embeddings', root / f'{gallery.stem}_embeddings.h5', '--filename', root / 'it.json')
        assert evaluated.wait() == 0, evaluated.output
        evaluation = json.loads((root / 'it.json').read_text())
        assert (evaluation['counts']['queries'] == 6) == (name == 'query')
        tolerance = 1e-9 if devices == 1 else 1e-6
        assert scores['mAP'] == pytest.approx(evaluation['mAP'], abs=tolerance)
        assert scores['top1'] == pytest.approx(evaluation['CMC'][0], abs=tolerance)


def test_a_validation_set_that_was_changed_meanwhile(mars, tmp_path):
    query, root = tmp_path / 'query.csv', tmp_path / 'run'
    query.write_bytes((mars / 'query.csv').read_bytes())
    run = Run('train.py', '--experiment_root', root, '--train_set', mars / 'train.csv', '--image_root', mars,
              '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', 8, '--batch_p', 2, '--batch_k', 2,
              '--net_input_height', 32, '--net_input_width', 16, '--train_iterations', 1, '--eval_frequency', 9,
              '--eval_query', query, '--eval_gallery', mars / 'test.csv', '--eval_excluder', 'mars')
    assert run.wait() == 0, run.output
    start = json.loads((root / 'provenance.json').read_text())[0]
    for csv in (mars / 'train.csv', query, mars / 'test.csv'):
        assert start['sha256'][str(csv)] == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert start['arguments']['eval_query'] == str(query)
    query.write_text(''.join(query.read_text().splitlines(keepends=True)[1:]))
    run = Run('train.py', '--experiment_root', root, '--resume')
    assert run.wait() == 0 and f'{query} changed since the last start' in run.output, run.output
    assert run.output.count('changed since the last start') == 1
    assert 'later validations cannot be compared with earlier ones' in run.output and 'batches' not in run.output

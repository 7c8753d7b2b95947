"""The main job as its user does it: train, interrupt, resume, embed, evaluate, by the scripts and on image files."""
import functools
import json
import pathlib
import signal
import subprocess

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from _forked_python import forking_python
from _people import write_market1501
from _runs import Fault, Run
from conftest import ROOT, assert_one_sentence, run_script

ITERATIONS = 60


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    """Write a folder in Market-1501's layout with its csv files next to it."""
    root = tmp_path_factory.mktemp('people')
    write_market1501(root / 'images', identities=40, images_per_camera=4)
    made = run_script('make_dataset.py', 'market1501', root / 'images', '--out', root)
    assert made.returncode == 0, made.stderr
    return root


def train_flags(people, root, *more):
    return ['--experiment_root', root, '--train_set', people / 'market1501_train.csv', '--image_root',
            people / 'images', '--model_name', 'mnist', '--head_name', 'fc1024', '--embedding_dim', '16', '--batch_p',
            '8', '--batch_k', '4', '--net_input_height', '32', '--net_input_width', '16', '--pre_crop_height', '36',
            '--pre_crop_width', '18', '--flip_augment', '--crop_augment', '--learning_rate', '1e-3',
            '--train_iterations', ITERATIONS, '--decay_start_iteration', '30', '--checkpoint_frequency', '25',
            '--deterministic', '--detailed_logs', *more]


@pytest.fixture(scope='module')
def run(people):
    """The experiment root of an undisturbed run."""
    root = people / 'run'
    trained = run_script('train.py', *train_flags(people, root))
    assert trained.returncode == 0, trained.stderr
    return root


@pytest.fixture(scope='module')
def interrupted_run(people):
    """The experiment root of the same run, interrupted by SIGINT and resumed."""
    root = people / 'interrupted'
    run = Run('train.py', *train_flags(people, root), fault=Fault(signal.SIGINT, 'step', 11))
    assert run.wait() == 0 and 'Interrupted by SIGINT' in run.output, run.output
    steps = checkpoint_steps(root)
    assert 10 <= steps[-1] < ITERATIONS and steps[-1] not in (25, 50), 'the signal was heard too late for this test'
    resumed = Run('train.py', '--experiment_root', root, '--resume', '--batch_p', '5')
    assert resumed.wait() == 0 and 'batch_p was given as 5' in resumed.output, resumed.output
    return root


def checkpoint_steps(root):
    return sorted(int(file.stem.split('-')[1]) for file in pathlib.Path(root).glob('checkpoint-*.index'))


def evaluate(people, root, name='', excluder='market1501'):
    scores = root / f'scores{name}.json'
    done = run_script('evaluate.py', '--excluder', excluder, '--metric', 'euclidean',
                      '--query_dataset', people / 'market1501_query.csv',
                      '--query_embeddings', root / f'market1501_query{name}_embeddings.h5',
                      '--gallery_dataset', people / 'market1501_test.csv',
                      '--gallery_embeddings', root / f'market1501_test{name}_embeddings.h5', '--filename', scores)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f'mAP: {json.loads(scores.read_text())["mAP"]:.2%} | top-1: ')
    return json.loads(scores.read_text())


@pytest.fixture(scope='module')
def embedded(people, run):
    """The experiment root of the undisturbed run with the embeddings of queries and gallery, trained and untrained."""
    for subset in ('query', 'test'):
        for more in ((), ('--checkpoint', 'checkpoint-0', '--filename',
                          f'market1501_{subset}_untrained_embeddings.h5')):
            embedding = Run('embed.py', '--experiment_root', run, '--dataset', people / f'market1501_{subset}.csv',
                            '--crop_augment', 'center', '--flip_augment', '--aggregator', 'mean', *more)
            assert embedding.wait() == 0, embedding.output
    return run


def test_training_raises_map_well_above_the_untrained_net(people, embedded):
    trained, untrained = evaluate(people, embedded), evaluate(people, embedded, '_untrained')
    assert trained['mAP'] > untrained['mAP'] + 0.2
    assert trained['mAP'] > 0.7
    with h5py.File(embedded / 'market1501_query_embeddings.h5') as file:
        assert file['emb'].shape == (40, 16) and file['emb_aug'].shape == (2, 40, 16)
        assert list(file['augmentation_types']) == [b'original_center', b'original_flip_center']
        np.testing.assert_allclose(file['emb'][()], file['emb_aug'][()].mean(0), rtol=1e-6)
        assert file['embs'] == file['emb']


def test_interrupted_and_resumed_run_is_bitwise_the_undisturbed_one(run, interrupted_run):
    first, second = (tf.train.load_checkpoint(str(root / f'checkpoint-{ITERATIONS}')) for root in (run, interrupted_run))
    names = first.get_variable_to_shape_map()
    assert names == second.get_variable_to_shape_map()
    assert {'global_step', 'beta1_power', 'emb/weights', 'emb/weights/Adam', 'emb/weights/Adam_1',
            'fully_connected/BatchNorm/moving_variance'} <= set(names)
    for name in names:
        assert np.array_equal(first.get_tensor(name), second.get_tensor(name)), name
    for log in ('embs', 'losses', 'fids'):
        logged = [np.load(root / f'log_{log}.npy', mmap_mode='r') for root in (run, interrupted_run)]
        assert len(logged[0]) == ITERATIONS
        assert np.array_equal(*logged)


def test_log_and_events_contain_each_iteration_once(run, interrupted_run):
    def iterations(root):
        lines = (root / 'train.log').read_text().splitlines()
        return [line.split('iter:')[1].split(', ETA')[0] for line in lines if 'iter:' in line]

    assert len(iterations(run)) == ITERATIONS
    assert iterations(run) == iterations(interrupted_run)
    for root in (run, interrupted_run):
        events = EventAccumulator(str(root), {TENSORS: 0}).Reload()
        assert {'loss', 'batch_top1', 'batch_prec_at_3', 'active_count', 'learning_rate', 'secs_per_iter',
                'loss_distribution', 'embedding_dists', 'embedding_pos_dists', 'embedding_neg_dists',
                'embedding_lengths'} == set(events.Tags()['tensors'])
        assert [event.step for event in events.Tensors('loss')] == list(range(1, ITERATIONS + 1))


def test_experiment_root_holds_what_it_takes_to_trace_a_number(people, run):
    text = (run / 'args.json').read_text()
    args = json.loads(text)
    assert text == json.dumps(args, indent=2, sort_keys=True) + '\n'
    assert args['margin'] == 'soft' and args['batch_p'] == 8 and args['resume'] is False and args['seed'] == 0
    assert checkpoint_steps(run) == [0, 25, 50, 60]
    state = (run / 'checkpoint').read_text().splitlines()
    assert state[0] == 'model_checkpoint_path: "checkpoint-60"' and len(state) == 5
    started = json.loads((run / 'provenance.json').read_text())
    assert len(started) == 1 and started[0]['versions']['tensorflow'].startswith('2.')
    assert len(started[0]['sha256'][str(people / 'market1501_train.csv')]) == 64


def test_finished_run_has_nothing_to_resume(run):
    before = sorted(path.name for path in run.iterdir())
    again = Run('train.py', '--experiment_root', run, '--resume')
    assert again.wait() == 0 and 'Training has already finished (60 iterations).' in again.output
    assert sorted(path.name for path in run.iterdir()) == before


def test_embeddings_of_another_csv_are_refused(people, embedded):
    swapped = run_script('evaluate.py', '--excluder', 'market1501', '--metric', 'euclidean',
                         '--query_dataset', people / 'market1501_query.csv',
                         '--query_embeddings', embedded / 'market1501_test_embeddings.h5',
                         '--gallery_dataset', people / 'market1501_test.csv',
                         '--gallery_embeddings', embedded / 'market1501_query_embeddings.h5')
    assert_one_sentence(swapped, 'rows', 'swapped')


def test_market1501_script_trains_resnet_50_on_images_of_full_size(people, tmp_path, monkeypatch):
    from _few_units import few_units
    from tripletreid.experiment import checkpoints
    from tripletreid.modeling import model
    few_units(monkeypatch.setattr)
    network = model.build('resnet_v1_50', 'fc1024', 128, (256, 128, 3))
    checkpoints.save(tmp_path, 0, model.named_variables(network.body))
    # In another folder, because the script writes its csv files to its own folder.
    project = tmp_path / 'project'
    for name in ('data', 'recipes'):
        (project / name).mkdir(parents=True)
    for name in ('market1501_train.sh', 'recipes/_start.sh', 'make_dataset.py', 'train.py'):
        (project / name).symlink_to(ROOT / name)
    with forking_python(tmp_path, functools.partial(few_units, setattr)) as environment:
        done = subprocess.run(['sh', str(project / 'market1501_train.sh'), str(people / 'images'),
                               str(tmp_path / 'checkpoint-0'), str(tmp_path / 'run'), '--batch_p', '2',
                               '--batch_k', '2', '--train_iterations', '2'],
                              capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert 'Initialised the body' in done.stderr and 'iter:     2' in done.stderr
    assert checkpoint_steps(tmp_path / 'run') == [0, 2]
    assert json.loads((tmp_path / 'run' / 'args.json').read_text())['batch_p'] == 2

"""Faults from outside: a full disk, a lost folder, a second run, damaged checkpoints, numbers that are not finite."""
import json
import logging
import os
import pathlib
import resource
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

from _runs import Fault, Run, ended_in_one_sentence, make_people, run_results, train_arguments
from samplers.random import Sampler
from tripletreid import files
from tripletreid.dataset import load_dataset
from tripletreid.embeddings import writer
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.shards import open_embeddings, shard_names
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, best_checkpoint, train_log
from tripletreid.experiment.root import LOCK_FILE, SECONDS_UNTIL_DEAD, locked
from tripletreid.input_pipeline import sampling

pytestmark = pytest.mark.long

LOG = logging.getLogger('test')


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def finished(people, tmp_path_factory):
    """The root of a run that nothing happened to."""
    root = tmp_path_factory.mktemp('finished') / 'run'
    run = Run('train.py', *train_arguments(people, root))
    assert run.wait() == 0, run.output
    return root


@pytest.fixture
def small_disk(tmp_path):
    """A function (size) -> the folder of a disk of that size; called again it makes the disk larger."""
    folder = tmp_path / 'disk'
    folder.mkdir()

    def resize(size):
        options = ['-o', f'remount,size={size}'] if os.path.ismount(folder) else ['-o', f'size={size}']
        command = ['mount', '-t', 'tmpfs', *options, 'tmpfs', str(folder)]
        if subprocess.run(command, capture_output=True, timeout=60).returncode:
            pytest.skip('only root may mount a disk')
        return folder

    yield resize
    subprocess.run(['umount', str(folder)], capture_output=True, timeout=60)


def goes_on_to_the_same_end(root, finished):
    run = Run('train.py', '--experiment_root', root, '--resume')
    assert run.wait() == 0, run.output
    assert run_results(root, 20) == run_results(finished, 20)


def files_stay_small():
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))


def test_full_disk_in_training(people, finished, small_disk):
    one_checkpoint = sum(file.stat().st_size for file in finished.glob('checkpoint-4.*'))
    root = small_disk(3 * one_checkpoint) / 'run'
    ended_in_one_sentence(Run('train.py', *train_arguments(people, root)), 'No space left on device', '--resume')
    assert not list(root.glob('.checkpoint*')), 'unfinished files still take room'
    small_disk(20 * one_checkpoint + (1 << 20))
    goes_on_to_the_same_end(root, finished)


def test_write_errors_in_training(people, finished, tmp_path):
    """As on a full disk, for everybody: from a step on files cannot grow."""
    root = tmp_path / 'run'
    run = Run('train.py', *train_arguments(people, root), fault=Fault(files_stay_small, 'step', 6))
    ended_in_one_sentence(run, 'File too large', '--resume')
    goes_on_to_the_same_end(root, finished)


def test_log_on_a_full_disk(tmp_path):
    (tmp_path / train_log.LOG_FILE).symlink_to('/dev/full')
    log = train_log.open_log(tmp_path)
    with pytest.raises(OSError, match='No space left on device') as raised:
        log.info('hello')
    assert raised.value.filename == str(tmp_path / train_log.LOG_FILE)


def test_lost_folder(people, finished, tmp_path):
    root, away = tmp_path / 'run', tmp_path / 'away'
    run = Run('train.py', *train_arguments(people, root), fault=Fault(_Rename(root, away), 'step', 6))
    ended_in_one_sentence(run, 'No such file or directory', root)
    away.rename(root)
    goes_on_to_the_same_end(root, finished)


class _Rename:
    def __init__(self, old, new):
        self.old, self.new = old, new

    def __call__(self):
        os.rename(self.old, self.new)


def test_a_second_run_is_refused_and_a_second_signal_ends_at_once(people, tmp_path):
    root = tmp_path / 'run'
    first = Run('train.py', *train_arguments(people, root, iterations=100_000, checkpoint_frequency=0))
    first.wait_for('iter:')
    second = Run('train.py', '--experiment_root', root, '--resume')
    ended_in_one_sentence(second, 'Another run works in', f'process {first.pid}')
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    # The lock of a dead process does not count. A hanging step, as on a dead network drive, receives the signals, too.
    hanging = Run('train.py', '--experiment_root', root, '--resume', fault=Fault(_hang_in_c, 'step', 3))
    hanging.wait_for('hanging')
    os.kill(hanging.pid, signal.SIGTERM)
    os.kill(hanging.pid, signal.SIGINT)
    assert hanging.wait(20) in (128 + signal.SIGINT, 128 + signal.SIGTERM), hanging.output


def _hang_in_c():
    import ctypes
    print('hanging')
    ctypes.CDLL(None).sleep(1000)  # Without Python's lock, as TensorFlow's calls. A signal cuts a sleep short:
    ctypes.CDLL(None).sleep(1000)
    ctypes.CDLL(None).sleep(1000)


def test_a_lock_of_another_host(tmp_path):
    lock, log = tmp_path / LOCK_FILE, tmp_path / train_log.LOG_FILE
    lock.write_text('host elsewhere process 1\n')
    log.write_text('')
    with pytest.raises(InputError, match='on another host works in .*host elsewhere process 1.* remove'):
        with locked(tmp_path):
            pass
    silent_since = time.time() - SECONDS_UNTIL_DEAD - 1
    os.utime(log, (silent_since, silent_since))
    with locked(tmp_path):
        assert f'process {os.getpid()}' in lock.read_text()


def test_killed_before_the_first_checkpoint(people, finished, tmp_path):
    root = tmp_path / 'run'
    run = Run('train.py', *train_arguments(people, root), fault=Fault(signal.SIGKILL, 'file', 5))
    assert run.wait() == -signal.SIGKILL and (root / 'args.json').exists(), run.output
    assert not list(root.glob('checkpoint*'))
    goes_on_to_the_same_end(root, finished)


def test_not_finite(people, tmp_path):
    """The second step is the first one with weights that are beyond all bounds."""
    root = tmp_path / 'run'
    run = Run('train.py', *train_arguments(people, root), '--learning_rate', 1e30)
    ended_in_one_sentence(run, 'Iteration 2 gave', f'the last good checkpoint is {root}/checkpoint-0')
    kept = {path.name for path in root.glob('checkpoint-*.index')}
    assert kept == {'checkpoint-0.index'}
    args, _ = arguments.load(str(root))
    train_set = load_dataset(people / 'people.csv')
    identities = sampling.Identities(train_set, args.batch_p)
    rows = sampling.rows_at(identities, args, Sampler(args, identities).steps(1, 2))
    assert ' on ' + ', '.join(train_set.fids[rows]) + '. ' in run.output


@pytest.fixture(scope='module')
def validated(people, tmp_path_factory):
    """The command line of a run that validates two sets after every eighth step, without its root; and such a root."""
    root = tmp_path_factory.mktemp('validated') / 'run'
    csv, other = people / 'people.csv', root.parent / 'others.csv'
    other.write_text(''.join(csv.read_text().splitlines(keepends=True)[::2]))
    command = [*train_arguments(people, root)[2:], '--eval_query', csv, other, '--eval_gallery', csv, csv,
               '--eval_excluder', 'diagonal', '--eval_flip', '--eval_frequency', 8]
    run = Run('train.py', '--experiment_root', root, *command)
    assert run.wait() == 0, run.output
    return command, root


def test_validation_changes_nothing_of_the_training(validated, finished):
    with_validation, without = run_results(validated[1], 20), run_results(finished, 20)
    validation_tags = {tag for tag in with_validation['curves'] if tag.startswith('validation_')}
    assert {tag.partition('/')[0] for tag in validation_tags} == {
        'validation_mAP', 'validation_top1', 'validation_mAP_market1501', 'validation_rank-5', 'validation_rank-10',
        'validation_rank-20', 'validation_mINP'} and len(validation_tags) == 21
    for tag in validation_tags:
        del with_validation['curves'][tag]
    assert with_validation == without


@pytest.mark.parametrize('action, status', [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_struck_while_validating(validated, tmp_path, action, status):
    command, undisturbed = validated
    root = tmp_path / 'run'
    run = Run('train.py', '--experiment_root', root, *command, fault=Fault(action, 'embedding', 7))
    assert run.wait() == status and 'Traceback' not in run.output, run.output
    assert [entry['step'] for entry in best_checkpoint.results(root)] == [8], 'the second one was not finished'
    run = Run('train.py', '--experiment_root', root, '--resume')
    assert run.wait() == 0, run.output
    assert run_results(root, 20) == run_results(undisturbed, 20)
    assert (root / best_checkpoint.FILE).read_bytes() == (undisturbed / best_checkpoint.FILE).read_bytes()


def kill_after_the_last_row():
    def write_at(file, position, values):
        files.write_at(file, position, values)
        if bytes(values) == (24).to_bytes(writer.COUNT_BYTES, 'little'):
            os.kill(os.getpid(), signal.SIGKILL)

    writer.write_at = write_at


def test_embedding_interrupted(people, finished, tmp_path):
    arguments = ['--experiment_root', finished, '--dataset', people / 'people.csv', '--batch_size', 4, '--filename']
    run = Run('embed.py', *arguments, tmp_path / 'whole.h5')
    assert run.wait() == 0, run.output
    # One fsync for every four rows: the faults strike after eight of them.
    part = tmp_path / 'part.h5'
    run = Run('embed.py', *arguments, part, fault=Fault(signal.SIGINT, 'file', 3))
    assert run.wait() == -signal.SIGINT and 'Traceback' not in run.output and not part.exists(), run.output
    run = Run('embed.py', *arguments, part, '--resume', fault=Fault(signal.SIGKILL, 'file', 3))
    assert run.wait() == -signal.SIGKILL and 'after 8 existing rows' in run.output and not part.exists(), run.output
    run = Run('embed.py', *arguments, part, '--resume', fault=Fault(kill_after_the_last_row, 'file', 1))
    assert run.wait() == -signal.SIGKILL and 'after 16 existing rows' in run.output and not part.exists(), run.output
    run = Run('embed.py', *arguments, part, '--resume')
    assert run.wait() == 0 and 'after 24 existing rows' in run.output, run.output
    with h5py.File(part) as resumed, h5py.File(tmp_path / 'whole.h5') as whole:
        assert np.array_equal(resumed['emb'], whole['emb']) and np.array_equal(resumed['fids'], whole['fids'])


def test_embedding_in_parts_interrupted(people, finished, tmp_path):
    """Each part is complete or absent, and existing parts are not made again."""
    arguments = ['--experiment_root', finished, '--dataset', people / 'people.csv', '--batch_size', 4, '--filename']
    run = Run('embed.py', *arguments, tmp_path / 'whole.h5')
    assert run.wait() == 0, run.output
    arguments += [tmp_path / 'part.h5', '--shards']
    paths = [pathlib.Path(name) for name in shard_names(tmp_path / 'part.h5', 3)]
    run = Run('embed.py', *arguments, 3, fault=Fault(signal.SIGINT, 'embedding', 2))
    assert run.wait() == -signal.SIGINT and [path.is_file() for path in paths] == [True, False, False], run.output
    made = paths[0].stat().st_mtime_ns
    run = Run('embed.py', *arguments, 3, '--resume')
    assert run.wait() == 0 and paths[0].stat().st_mtime_ns == made, run.output
    with open_embeddings([tmp_path / 'part-*.h5']) as parts, Embeddings(tmp_path / 'whole.h5') as one:
        assert [len(Embeddings(path)) for path in paths] == [8, 8, 8]
        assert np.array_equal(parts.rows(0, 24), one.rows(0, 24)) and np.array_equal(parts.fids, one.fids)
    run = Run('embed.py', *arguments, 25)
    ended_in_one_sentence(run, '--shards 25 is more than the 24 rows of')


def test_full_disk_in_embedding(people, finished, small_disk):
    folder = small_disk(100_000)
    arguments = ['--experiment_root', finished, '--dataset', people / 'people.csv', '--filename', folder / 'a.h5']
    filler = folder / 'filler'
    filler.write_bytes(bytes(99_000 // 4096 * 4096))
    ended_in_one_sentence(Run('embed.py', *arguments), 'No space left on device', folder / 'a.h5')
    assert os.listdir(folder) == ['filler']
    filler.unlink()
    small_disk(1 << 20)
    run = Run('embed.py', *arguments)
    assert run.wait() == 0, run.output
    with h5py.File(folder / 'a.h5') as file:
        assert np.isfinite(file['emb'][()]).all() and file['emb'].shape == (24, 4)


def test_full_disk_in_evaluation(people, finished, small_disk):
    folder = small_disk(1 << 20)
    run = Run('embed.py', '--experiment_root', finished, '--dataset', people / 'people.csv', '--filename',
              folder / 'a.h5')
    assert run.wait() == 0, run.output
    sets = [each for role in ('query', 'gallery')
            for each in (f'--{role}_dataset', people / 'people.csv', f'--{role}_embeddings', folder / 'a.h5')]
    evaluation = [*sets, '--excluder', 'diagonal', '--metric', 'euclidean', '--filename', folder / 'a.json']
    filler = folder / 'filler'
    with pytest.raises(OSError, match='No space left'):
        filler.write_bytes(bytes(1 << 20))
    run = Run('evaluate.py', *evaluation)
    ended_in_one_sentence(run, 'No space left on device', folder / 'a.json')
    assert 'mAP: ' in run.output, 'the numbers are still printed'
    assert sorted(os.listdir(folder)) == ['a.h5', 'filler']
    filler.unlink()
    run = Run('evaluate.py', *evaluation)
    assert run.wait() == 0 and 'mAP' in json.loads((folder / 'a.json').read_text()), run.output


def test_full_disk_keeps_the_old_file(small_disk):
    folder = small_disk(16384)
    files.write_json(folder / 'a.json', {'mAP': 0.5})
    with pytest.raises(OSError, match='No space left'):
        files.write_json(folder / 'a.json', {'aps': list(range(10000))})
    assert os.listdir(folder) == ['a.json'] and '0.5' in (folder / 'a.json').read_text()


@pytest.fixture
def saved(tmp_path):
    """A root with the checkpoints 0, 10 and 20, whose variable counts the steps."""
    import tensorflow as tf

    from tripletreid.experiment import checkpoints
    for step in (0, 10, 20):
        checkpoints.save(tmp_path, step, {'a/weights': tf.fill([100, 3], float(step))})
    return tmp_path


def restored(root):
    import tensorflow as tf

    from tripletreid.experiment import checkpoints
    variable = tf.Variable(tf.zeros([100, 3]))
    checkpoints.load_newest(root, lambda path: checkpoints.load(path, {'a/weights': variable}), LOG)
    assert np.ptp(variable.numpy()) == 0
    return variable.numpy()[0, 0]


@pytest.mark.parametrize('ending', ['.index', '.data-00000-of-00001'])
@pytest.mark.parametrize('damage', ['cut', 'empty', 'zeros', 'bit', 'gone'])
def test_damaged_newest_checkpoint(saved, ending, damage, caplog):
    path = saved / f'checkpoint-20{ending}'
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes({'cut': content[:len(content) // 2], 'empty': b'', 'zeros': bytes(len(content)),
                      'bit': content, 'gone': b''}[damage])
    if damage == 'gone':
        path.unlink()
    assert restored(saved) == 10
    # An index that is gone leaves no checkpoint to warn of.
    assert 'Falling back to the previous one' in caplog.text or (ending, damage) == ('.index', 'gone')


@pytest.mark.parametrize('state', [None, b'', b'\xff\0', b'model_checkpoint_path: "checkpoint-999"\n',
                                   b'model_checkpoint_path: "/somewhere/else/checkpoint-20"\n',
                                   b'model_checkpoint_path: "../../etc/passwd"\n'])
def test_state_file_missing_or_garbage(saved, state):
    (saved / 'checkpoint').unlink()
    if state is not None:
        (saved / 'checkpoint').write_bytes(state)
    assert restored(saved) == 20


def test_no_checkpoint_is_whole(saved):
    for path in saved.glob('*.index'):
        path.write_bytes(b'')
    with pytest.raises(InputError, match='No checkpoint in .* is complete'):
        restored(saved)


def test_a_checkpoint_that_cannot_be_written(saved):
    import tensorflow as tf

    from tripletreid.experiment import checkpoints
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match='File too large') as raised:
            checkpoints.save(saved, 30, {'a/weights': tf.zeros([100, 3])})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(saved / 'checkpoint-30')
    assert restored(saved) == 20 and not list(saved.glob('.*'))


def test_not_finite_is_never_saved(saved):
    import tensorflow as tf

    from tripletreid.experiment import checkpoints
    with pytest.raises(InputError, match='a/weights is not finite after 30 iterations'):
        checkpoints.save(saved, 30, {'a/weights': tf.fill([100, 3], float('nan'))})
    assert restored(saved) == 20


def test_keep_checkpoints(saved):
    import tensorflow as tf

    from tripletreid.experiment import checkpoints
    best_checkpoint.note(saved, 0, {'mAP': 0.9, 'top1': 0.9})
    best_checkpoint.note(saved, 20, {'mAP': 0.8, 'top1': 0.9})
    for step in (30, 40, 50):
        checkpoints.save(saved, step, {'a/weights': tf.fill([100, 3], float(step))}, keep=2, resumed_from=10)
    assert sorted(checkpoints.steps_in(saved)) == [0, 10, 40, 50], 'the best, the one resumed from, the newest two'
    assert restored(saved) == 50 and (saved / 'checkpoint').read_text().count('all_model_checkpoint_paths') == 4

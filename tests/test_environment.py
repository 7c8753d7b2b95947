"""Whatever a command finds around it: settings for other work, closed streams, odd encodings, signals, little memory."""
import json
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from _runs import Fault, Run, ended_in_one_sentence, make_people, train_arguments
from conftest import ROOT, assert_one_sentence, run_script
from test_structure import COMMANDS
from tripletreid import errors
from tripletreid.experiment import flag_checks, train_flags

BASH = ['bash', '-c', 'exec "$0" "$@" 2>&-']  # Standard error closed.


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def trained(people, tmp_path_factory):
    """Return a root with a name outside of Latin-1, and the embeddings of embed.py in a usual environment."""
    root = tmp_path_factory.mktemp('trained') / 'Łódź'
    run = Run('train.py', *train_arguments(people, root, iterations=2))
    assert run.wait() == 0, run.output
    run = Run('embed.py', *embed_arguments(people, root, 'plain.h5'))
    assert run.wait() == 0, run.output
    return root


def embed_arguments(people, root, name):
    return ['--experiment_root', root, '--dataset', people / 'people.csv', '--filename', name]


def test_settings_for_other_work(people, trained, tmp_path):
    """Another Keras, a log that is not UTF-8 and a closed standard error: the same bits, and status 0."""
    (tmp_path / '.keras').mkdir()
    settings = {'backend': 'torch', 'image_data_format': 'channels_first', 'floatx': 'float64', 'epsilon': 0.1}
    (tmp_path / '.keras' / 'keras.json').write_text(json.dumps(settings))
    environment = {**os.environ, 'HOME': str(tmp_path), 'KERAS_BACKEND': 'jax', 'TF_USE_LEGACY_KERAS': '1',
                   'PYTHONIOENCODING': 'latin1'}
    command = [*BASH, sys.executable, ROOT / 'embed.py', *embed_arguments(people, trained, 'odd.h5')]
    process = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, timeout=300)
    assert process.returncode == 0 and b'Saved ' in process.stdout, process.stdout
    assert '\\u0141ód\\u017a'.encode('latin1') in process.stdout
    with h5py.File(trained / 'odd.h5') as odd, h5py.File(trained / 'plain.h5') as plain:
        assert odd['emb'][()].tobytes() == plain['emb'][()].tobytes()


def test_help_without_the_characters_and_without_docstrings():
    for encoding in ('latin1', 'ascii'):
        process = run_script('evaluate.py', '--help', env={**os.environ, 'PYTHONIOENCODING': encoding})
        assert process.returncode == 0 and '(?P<pid>\\u2026)' in process.stdout, process.stderr
    for script in ('make_dataset.py', 'visualize.py'):
        process = subprocess.run([sys.executable, '-OO', str(ROOT / script), '--help'], capture_output=True, text=True,
                                 timeout=120)
        assert process.returncode == 0 and 'usage: ' in process.stdout, process.stderr


@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_streams_are_no_file(tmp_path, closed):
    """The first opened file would have the number of a closed stream, and receive the output of libraries."""
    code = '''
from tripletreid import startup
startup.settle()
import os, sys
with open('file', 'w') as file:
    assert file.fileno() > 2
    print('to standard output')
    print('to standard error', file=sys.stderr, flush=True)
    for number in (1, 2):
        os.write(number, b'by a library')
'''
    process = subprocess.run(f'"{sys.executable}" -c "$CODE" {closed}', shell=True, cwd=tmp_path, timeout=60,
                             capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT), 'CODE': code})
    assert process.returncode == 0, process.stderr
    assert (tmp_path / 'file').read_bytes() == b''


def test_output_that_cannot_be_written():
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    with open('/dev/full', 'w') as full:
        command = [sys.executable, '-c', 'from tripletreid import errors; errors.exit_with(lambda: print(1))']
        process = subprocess.run(command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True,
                                 timeout=60)
    assert process.returncode == 1 and process.stderr == 'error: standard output: No space left on device.\n'


@pytest.mark.parametrize('command', sorted(COMMANDS))
def test_ctrl_c_while_modules_are_imported(tmp_path, command):
    """It strikes in the first import of all commands, in the midst of an `except:`, as libraries have them."""
    (tmp_path / 'argparse.py').write_text('''
import os
try:
    os.kill(os.getpid(), 2)
    for _ in range(1000):
        pass
except:
    pass
os._exit(0)
''')
    process = run_script(f'{command}.py', '--help', env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGINT, '', '')


def test_ctrl_c_is_unheard_by_children_though_a_semaphore_is_the_first():
    """With which Python starts its resource tracker, and unblocks the signal."""
    program = '; '.join([
        'import multiprocessing, signal', 'from tripletreid import signals', 'children = signals.unheard_by_children()',
        'children.__enter__()', 'semaphore = multiprocessing.get_context("spawn").Semaphore()',
        'print(signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)', 'children.__exit__(None, None, None)',
        'print(signal.pthread_sigmask(signal.SIG_BLOCK, []))'])
    process = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (process.stdout, process.stderr) == (f'{ {signal.SIGINT} }\nset()\n', '')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_cache_is_filled(people, tmp_path, number):
    """The run has not started: it ends at once, and its root and the cache are as if it had never been."""
    start = [*train_arguments(people, tmp_path / 'run', iterations=2), '--cache', tmp_path / 'cache']
    run = Run('train.py', *start, fault=Fault(number, 'cache', 1))
    assert run.wait(60) == -number and 'Traceback' not in run.output, run.output
    assert os.listdir(tmp_path / 'run') == ['.lock'] and os.listdir(tmp_path / 'cache') == []
    run = Run('train.py', *start)
    assert run.wait() == 0, run.output


def test_a_signal_before_a_resumed_run_goes_on(trained, people, tmp_path):
    root = tmp_path / 'run'
    run = Run('train.py', *train_arguments(people, root), fault=Fault(signal.SIGTERM, 'step', 3))
    assert run.wait() == 0, run.output
    held = sorted(path.name for path in root.glob('checkpoint*'))
    run = Run('train.py', '--experiment_root', root, '--resume', fault=Fault(signal.SIGINT, 'batches', 1))
    assert run.wait(60) == -signal.SIGINT and 'Traceback' not in run.output, run.output
    assert sorted(path.name for path in root.glob('checkpoint*')) == held and (root / 'args.json').exists()


@pytest.mark.parametrize('flags, part', [
    (['--loading_threads', '2147483647'], 'at most 1024'), (['--embedding_dim', '2147483647'], 'at most 16384'),
    (['--net_input_height', '60000', '--net_input_width', '60000'], 'at most 16384'),
    (['--pre_crop_width', '60000'], 'at most 16384'), (['--devices', '2147483647'], 'at most 1024'),
    (['--batch_k', '100000000'], '3200000000 images')])
def test_bounds_of_training(flags, part, capsys):
    parser = train_flags.make_parser()
    with pytest.raises(SystemExit) as ended:
        args = parser.parse_args(['--experiment_root', 'a', '--train_set', 'b', '--image_root', 'c', *flags])
        flag_checks.check(args, parser)
    message = next(line for line in capsys.readouterr().err.splitlines() if 'error: ' in line)
    assert ended.value.code == 2 and part in message, message


@pytest.mark.parametrize('command, flags', [
    ('embed', ['--experiment_root', 'a', '--dataset', 'b', '--loading_threads', '2147483647']),
    ('evaluate', ['--workers', '2147483647']),
    ('freeze', ['--checkpoint_name', 'a', '--embedding_dim', '2147483647']),
    ('freeze', ['--checkpoint_name', 'a', '--net_input_height', '60000'])])
def test_bounds_of_the_other_commands(command, flags):
    assert_one_sentence(run_script(f'{command}.py', *flags), flags[-2], flags[-1], 'at most', status=2)


def test_a_batch_larger_than_memory_is_as_large_as_there_are_images(people, trained):
    """The batch would need 94 GB at its nominal size, and TensorFlow hung."""
    run = Run('embed.py', *embed_arguments(people, trained, 'large_batch.h5'), '--batch_size', 10_000_000)
    assert run.wait(60) == 0, run.output
    with h5py.File(trained / 'large_batch.h5') as large, h5py.File(trained / 'plain.h5') as plain:
        np.testing.assert_allclose(large['emb'][()], plain['emb'][()], rtol=1e-6, atol=1e-6)


def too_large_an_array():
    try:
        np.empty(1 << 58, np.uint8)
    except MemoryError as error:
        return error


@pytest.mark.parametrize('error, sentence', [
    (too_large_an_array, 'There is not enough memory (Unable to allocate 256. PiB for an array with shape '
     '(288230376151711744,) and data type uint8); lower --this.'),
    (MemoryError, 'There is not enough memory; lower --this.'),
    (lambda: OSError(12, 'Cannot allocate memory'), 'There is not enough memory (Cannot allocate memory); lower --this.'),
    (lambda: OSError(28, 'No space left on device', 'a.h5'), 'a.h5: No space left on device.')])
def test_out_of_memory_is_one_sentence(error, sentence, capsys):
    def main():
        raise error()

    with pytest.raises(SystemExit) as ended:
        errors.exit_with(main, lower='--this')
    assert ended.value.code == 1 and capsys.readouterr().err == f'error: {sentence}\n'


def test_memory_runs_out_while_images_are_loaded(people, trained):
    # TensorFlow's own allocator would wait ten seconds per image for memory that others may free.
    run = Run('embed.py', *embed_arguments(people, trained, 'little.h5'), fault=Fault(no_more_memory, 'embedding', 1),
              environment={'TF_ONEDNN_USE_SYSTEM_ALLOCATOR': '1'})
    ended_in_one_sentence(run, 'not enough memory', 'OOM when allocating')


def no_more_memory():
    from tripletreid.input_pipeline import images

    def resize(image, size, method='tf1'):
        import tensorflow as tf
        return tf.ensure_shape(tf.zeros(tf.cast([1 << 40, *size, 3], tf.int64) + tf.cast(tf.size(image), tf.int64) * 0)[0],
                               [*size, 3])

    images.resize = resize

"""Faster with equal numbers, or with a stated tolerance: 16 bits, XLA, cached images, constant memory."""
import concurrent.futures
import multiprocessing.connection
import os
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from _runs import FORKS, Fault, Run, make_people, run_results, start_fork_server, train_arguments
from conftest import assert_one_sentence, run_script
from tripletreid import pictures, plugins
from tripletreid.dataset import load_dataset
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, train_flags
from tripletreid.input_pipeline import batches, cache, images, sampling
from tripletreid.modeling import model
from tripletreid.pictures import Pixels
from tripletreid.training.loss_scale import LossScale

ITERATIONS = 8
# CPUs emulate float16: larger images only take longer.
SIZE = ['--net_input_height', 12, '--net_input_width', 12]


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def plain(people, tmp_path_factory):
    """The experiment root of a run without any of it."""
    return train(people, tmp_path_factory.mktemp('runs') / 'plain')


def train(people, root, *flags):
    run = Run('train.py', *train_arguments(people, root, ITERATIONS), *SIZE, *flags)
    assert run.wait() == 0, run.output
    return root


def losses(root):
    return np.load(root / 'log_losses.npy')


def test_float16_is_near_float32_and_resumed_exactly(people, plain, tmp_path):
    root = train(people, tmp_path / 'float16', '--mixed_precision', 'float16')
    # Adam's first steps hardly depend on the size of a gradient, so rounding shows later on.
    np.testing.assert_allclose(losses(root)[:2], losses(plain)[:2], atol=0.005)
    assert not np.array_equal(losses(root), losses(plain))
    before = run_results(root, ITERATIONS)
    for name in ('checkpoint-8.index', 'checkpoint-8.data-00000-of-00001', 'checkpoint'):
        (root / name).unlink()
    run = Run('train.py', '--experiment_root', root, '--resume')
    assert run.wait() == 0 and 'checkpoint-4' in run.output, run.output
    after = run_results(root, ITERATIONS)
    assert all(before[name] == after[name] for name in before if name != 'log')
    reader = tf.train.load_checkpoint(str(root / 'checkpoint-8'))
    assert reader.get_tensor('loss_scale') == 2 ** 15 and reader.get_tensor('loss_scale_good_steps') == ITERATIONS


def test_xla_gives_the_same_losses(people, plain, tmp_path):
    arguments_of_run = train_arguments(people, tmp_path / 'xla', ITERATIONS)
    arguments_of_run.remove('--deterministic')
    run = Run('train.py', *arguments_of_run, *SIZE, '--jit_compile')
    assert run.wait() == 0, run.output
    np.testing.assert_allclose(losses(tmp_path / 'xla'), losses(plain), atol=1e-4)


def test_a_cache_changes_no_bit(people, plain, tmp_path):
    folder = tmp_path / 'cache'
    for name, where in (('memory', 'memory'), ('filled', folder), ('found', folder)):
        root = train(people, tmp_path / name, '--cache', where)
        assert np.array_equal(losses(root), losses(plain)), name
    assert sorted(os.listdir(folder)) == ['index.npz', 'pixels.bin']


def test_a_cache_of_other_images_is_refused(people, tmp_path):
    paths = images.paths(load_dataset(people / 'people.csv'), people)
    folder = str(tmp_path / 'cache')
    read = cache.reader(paths, folder, 2, (28, 28))
    rows = tf.data.Dataset.range(len(paths)).map(read)
    for path, pixels in zip(paths, rows.as_numpy_iterator(), strict=True):
        assert np.array_equal(pixels, images.load(path, (28, 28)))
    with pytest.raises(InputError, match='other images'):
        cache.reader(paths[1:], folder, 2, (28, 28))
    with open(os.path.join(folder, 'pixels.bin'), 'ab') as file:
        file.write(b'more')
    with pytest.raises(InputError, match='other images'):
        cache.reader(paths, folder, 2, (28, 28))
    os.truncate(os.path.join(folder, 'index.npz'), 100)
    with pytest.raises(InputError, match='not a complete cache'):
        cache.reader(paths, folder, 2, (28, 28))


@pytest.mark.parametrize('pixels', [Pixels(), Pixels('bicubic', 'accurate')])
def test_an_image_is_cached_decoded_or_resized_with_the_same_bits(tmp_path, pixels):
    """Three runs that start at once fill a folder once. Large images are stored resized, small ones decoded."""
    random = np.random.default_rng(0)
    paths = [str(tmp_path / f'{number}.jpg') for number in range(4)]
    for path, (height, width) in zip(paths, [(20, 30), (300, 200), (16, 12), (90, 100)]):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    expected = [images.load(path, (16, 12), pixels).numpy() for path in paths]
    folder = str(tmp_path / 'cache')
    with concurrent.futures.ThreadPoolExecutor(3) as runs:
        readers = list(runs.map(lambda kind: cache.reader(paths, kind, 2, (16, 12), pixels), [folder] * 3 + ['memory']))
    for read in readers:
        rows = tf.data.Dataset.range(len(paths)).map(read)
        assert all(np.array_equal(*pair) for pair in zip(rows.as_numpy_iterator(), expected, strict=True))
    resized = 16 * 12 * 3 * (4 if pixels.resize == 'tf1' else 1)
    decoded = [3 * height * width for height, width in map(pictures.sides, paths)]
    assert os.path.getsize(os.path.join(folder, 'pixels.bin')) == sum(min(each, resized) for each in decoded)
    with pytest.raises(InputError, match='of another size'):
        cache.reader(paths, folder, 2, (20, 20), pixels)


def test_cached_pixels_are_in_memory_once(people, monkeypatch):
    paths = images.paths(load_dataset(people / 'people.csv'), people)
    filled = []
    in_memory = cache._in_memory
    monkeypatch.setattr(cache, '_in_memory', lambda *arguments: filled.append(in_memory(*arguments)) or filled[0])
    read = cache.reader(paths, 'memory', 2, (28, 28))
    filled[0][2][:] = 7
    assert np.array_equal(read(tf.constant(3)), np.full((28, 28, 3), 7)), 'the tensor has the memory of the array'


def test_a_cache_that_does_not_fit_into_memory_is_refused_before_it_is_filled(people, monkeypatch):
    paths = images.paths(load_dataset(people / 'people.csv'), people)
    monkeypatch.setattr(cache, '_available_memory', lambda: 1000)
    monkeypatch.setattr(cache, '_decoded', None)
    with pytest.raises(InputError, match=r'--cache memory needs 0.0 GB for the pixels of \d+ images.*use --cache none'):
        cache.reader(paths, 'memory', 2, (28, 28))
    monkeypatch.undo()
    assert 1e6 < cache._available_memory() < 1e15


@pytest.mark.parametrize('left', [['.pixels.bin.0123abcd.partial'], ['pixels.bin'],
                                  ['pixels.bin', '.index.npz.0123abcd.partial']])
def test_a_cache_that_a_killed_run_has_begun_is_filled_again(people, tmp_path, left):
    paths = images.paths(load_dataset(people / 'people.csv'), people)
    for name in left:
        (tmp_path / name).write_bytes(b'half')
    read = cache.reader(paths, str(tmp_path), 2, (28, 28))
    assert np.array_equal(read(tf.constant(5)), images.load(paths[5], (28, 28)))
    assert sorted(os.listdir(tmp_path)) == ['index.npz', 'pixels.bin']


def read_from_cache(paths, folder, parent):
    """Send an image from the cache to the parent process; before this process fills the folder, ask the parent."""
    decoded = cache._decoded

    def decoded_when_allowed(*arguments):
        parent.send('filling')
        parent.recv()
        yield from decoded(*arguments)

    cache._decoded = decoded_when_allowed
    parent.send(cache.reader(paths, folder, 2, (28, 28))(tf.constant(5)).numpy())


def test_three_processes_fill_one_cache_although_one_is_killed(people, tmp_path):
    paths = images.paths(load_dataset(people / 'people.csv'), people)
    start_fork_server()
    processes = {}
    for _ in range(3):
        end, theirs = FORKS.Pipe()
        processes[end] = FORKS.Process(target=read_from_cache, args=(paths, str(tmp_path), theirs), daemon=True)
        processes[end].start()
        theirs.close()
    ends = list(processes)

    def next_message():
        [end, *_] = multiprocessing.connection.wait(ends, timeout=120)
        return end, end.recv()

    first, message = next_message()
    assert message == 'filling' and not multiprocessing.connection.wait(ends, timeout=1)
    assert (unfinished := os.listdir(tmp_path)) and unfinished != ['pixels.bin']
    processes[first].kill()
    ends.remove(first)
    second, message = next_message()
    assert message == 'filling'
    second.send('go on')
    for _ in range(2):
        end, pixels = next_message()
        ends.remove(end)
        assert np.array_equal(pixels, images.load(paths[5], (28, 28)))
    assert sorted(os.listdir(tmp_path)) == ['index.npz', 'pixels.bin']


def test_a_folder_of_something_else_is_no_cache(people, tmp_path):
    (tmp_path / 'pixels.bin').write_bytes(b'mine')
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(InputError, match='not a complete cache'):
        cache.reader(images.paths(load_dataset(people / 'people.csv'), people), str(tmp_path), 2, (28, 28))
    assert (tmp_path / 'pixels.bin').read_bytes() == b'mine'


def test_a_cache_of_a_broken_image_names_it(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xffnothing')
    for kind in ('memory', str(tmp_path / 'cache')):
        with pytest.raises(InputError, match='broken.jpg'):
            cache.reader([str(tmp_path / 'broken.jpg')], kind, 2, (28, 28))
    assert os.listdir(tmp_path / 'cache') == []


def test_parts_of_batches_are_the_batches(people):
    args = train_flags.make_parser().parse_args([*map(str, train_arguments(people, 'nowhere')), '--crop_augment',
                                               '--pre_crop_height', '32', '--pre_crop_width', '30'])
    dataset = load_dataset(people / 'people.csv')
    identities = sampling.Identities(dataset, args.batch_p)
    whole = list(batches.batches_of_steps(dataset, identities, args, 2, 7).as_numpy_iterator())
    second_worker = batches.batches_of_steps(dataset, identities, args, 2, 7, range(2, 6), 2)
    parts = list(second_worker.as_numpy_iterator())
    assert len(whole) == 5 and len(parts) == 10
    for number, part in enumerate(parts):
        batch = whole[number // 2]
        assert np.array_equal(part['rows'], batch['rows']) and np.array_equal(part['pids'], batch['pids'])
        start = 2 + number % 2 * 2
        assert np.array_equal(part['images'], batch['images'][start:start + 2])


@pytest.fixture
def restored_policy():
    yield
    keras.config.set_dtype_policy('float32')


@pytest.mark.parametrize('head', plugins.choices('heads'))
def test_weights_statistics_and_embeddings_are_float32(head, restored_policy):
    model.set_precision('bfloat16')
    network = model.build('mobilenet_v1_1_224', head, 8, (32, 32, 3))
    assert {str(variable.dtype) for variable in network.variables} == {'float32'}
    endpoints = network(np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32), training=True)
    assert endpoints['Conv2d_13_pointwise'].dtype == tf.bfloat16
    used = [endpoints[name] for name in ('emb', 'emb_raw', 'metric_emb') if name in endpoints]
    assert all(endpoint.dtype == tf.float32 for endpoint in used)


def test_loss_scale():
    scale = LossScale('float16')
    weight = tf.Variable(1.0)

    @tf.function(autograph=False)
    def step(gradient):
        [unscaled] = scale.unscaled([gradient])

        def update():
            weight.assign_sub(unscaled)

        return scale.apply(unscaled, update)

    step(scale.scaled(tf.constant(0.25)))
    assert weight.numpy() == 0.75 and scale.scale.numpy() == 2 ** 15 and scale.good_steps.numpy() == 1
    assert step(tf.constant(np.inf)).numpy() == 2 ** 15, 'the scale that this very step had'
    assert weight.numpy() == 0.75 and scale.scale.numpy() == 2 ** 14 and scale.good_steps.numpy() == 0
    assert scale.skipped(np.float32(np.inf), 2 ** 15) and not scale.skipped(np.float32(1), 2 ** 15)
    scale.good_steps.assign(1999)
    step(tf.constant(0.0))
    assert scale.scale.numpy() == 2 ** 15 and scale.good_steps.numpy() == 0
    scale.scale.assign(1)
    step(tf.constant(np.nan))
    assert scale.scale.numpy() == 1 and not scale.skipped(np.float32(np.nan), 1), 'a NaN at every scale is an error'
    assert LossScale('none').variables == LossScale('bfloat16').variables == {}


def test_precision_is_kept_with_the_run(people, plain, tmp_path):
    args, stored = arguments.load(str(plain))
    assert stored['mixed_precision'] == args.mixed_precision == 'none'
    process = run_script('train.py', *train_arguments(people, tmp_path / 'root'), '--mixed_precision', 'float8')
    assert_one_sentence(process, '--mixed_precision', 'float8', status=2)


def _print_peak():
    """Let a run of embed.py print its peak memory in KiB."""
    import embed
    main = embed.main

    def printing():
        main()
        print(f'peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}')

    embed.main = printing


def test_memory_does_not_grow_with_the_number_of_images(people, plain, tmp_path):
    lines = (people / 'people.csv').read_text().splitlines()
    peaks = []
    for number in (1_000, 10_000):
        path = tmp_path / f'{number}.csv'
        path.write_text('\n'.join(lines[i % len(lines)] for i in range(number)) + '\n')
        run = Run('embed.py', '--experiment_root', plain, '--dataset', path, '--quiet', fault=Fault(_print_peak, 'start'))
        assert run.wait() == 0, run.output
        peaks.append(int(run.output.split('peak ')[1]))
    assert peaks[1] < 1.1 * peaks[0], peaks

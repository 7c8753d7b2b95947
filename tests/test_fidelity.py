"""The project against the original: TF-Slim in TensorFlow 1 (`tf1_oracle.py`), on the same weights and images.

`benchmarks/fidelity.py` prints the differences of these tests as a table.
"""
import itertools
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import embed
from _runs import Run
from conftest import ROOT
from tripletreid import plugins
from tripletreid.dataset import load_dataset
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, checkpoints
from tripletreid.input_pipeline import batches, sampling
from tripletreid.modeling import inference, inspect_checkpoint, model, pretrained

pytestmark = pytest.mark.long

NETS = ('resnet_v1_50', 'resnet_v1_101', 'mobilenet_v1_1_224')
HEADS = ('direct', 'direct_normalize', 'fc1024', 'fc1024_normalize')
AUGMENTATIONS = tuple(itertools.product((False, True), (None, 'center', 'avgpool', 'five')))
TRAININGS = {
    'resnet': {'model_name': 'resnet_v1_50', 'head_name': 'fc1024', 'margin': 'soft'},
    'mobilenet': {'model_name': 'mobilenet_v1_1_224', 'head_name': 'fc1024_normalize', 'margin': 0.2},
}
FIRST_STEPS, STEPS = 3, 9


def original_args(folder, **changes):
    """Return the original's args.json: its flags only, and paths of another machine."""
    return {
        'batch_k': 2, 'batch_p': 4, 'checkpoint_frequency': 0, 'crop_augment': True, 'decay_start_iteration': 4,
        'detailed_logs': True, 'embedding_dim': 16, 'experiment_root': '/gone/experiment', 'flip_augment': True,
        'head_name': 'fc1024', 'image_root': str(folder / 'images'), 'initial_checkpoint': '/gone/resnet_v1_50.ckpt',
        'learning_rate': 3e-4, 'loading_threads': 2, 'loss': 'batch_hard', 'margin': 'soft', 'metric': 'euclidean',
        'model_name': 'resnet_v1_50', 'net_input_height': 64, 'net_input_width': 32, 'pre_crop_height': 72,
        'pre_crop_width': 36, 'resume': False, 'train_iterations': STEPS,
        'train_set': str(folder / 'images' / 'dataset.csv'), **changes}


def write_root(root, args):
    root.mkdir()
    (root / 'args.json').write_text(json.dumps(args, indent=2, sort_keys=True))


def write_images(folder):
    """Two images of each of four persons, no two of the same size."""
    random = np.random.default_rng(0)
    sizes = [(128, 64), (64, 32), (200, 77), (31, 50), (72, 36), (300, 150), (97, 33), (1, 5)]
    lines = []
    for i, size in enumerate(sizes):
        pixels = random.integers(0, 256, (*size, 3)) * random.uniform(0.2, 1, 3)
        fid = f'{i}.{"jpg" if i % 2 else "png"}'
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / fid)
        lines.append(f'{i // 2:04},{fid}\n')
    (folder / 'dataset.csv').write_text(''.join(lines))


def write_batches(folder, name):
    """The batches that the project draws in a training, for the original to train on."""
    args, _ = arguments.load(str(folder / f'{name}-training'))
    dataset = load_dataset(args.train_set)
    identities = sampling.Identities(dataset, args.batch_p)
    drawn = list(batches.batches_of_steps(dataset, identities, args, 0, STEPS).as_numpy_iterator())
    np.savez(folder / f'{name}-batches.npz', **{key: [batch[key] for batch in drawn] for key in ('images', 'pids')})


@pytest.fixture(scope='session')
def oracle(tmp_path_factory):
    """The folder with the original's checkpoints, roots and numbers."""
    folder = tmp_path_factory.mktemp('oracle')
    (folder / 'images').mkdir()
    write_images(folder / 'images')
    for name, changes in TRAININGS.items():
        write_root(folder / f'{name}-training', original_args(folder, **changes))
        write_batches(folder, name)
    command = [sys.executable, str(ROOT / 'tests' / 'tf1_oracle.py'), str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr
    yield folder
    shutil.rmtree(folder)  # Gigabytes.


def difference(found, expected):
    """The largest difference, relative to the largest number."""
    assert np.shape(found) == np.shape(expected)
    return np.abs(np.subtract(found, expected)).max() / max(np.abs(expected).max(), 1e-30)


@pytest.fixture
def check(record_property):
    """check(quantity, reached, allowed): asserts, and records a line of the table."""
    def record_and_assert(quantity, reached, allowed):
        record_property('fidelity', (quantity, float(reached), allowed))
        assert reached <= allowed
    return record_and_assert


@pytest.mark.parametrize('net', NETS)
def test_net_with_slim_checkpoint(oracle, net, check):
    network = model.build(net, 'direct', 16, (None, None, 3))
    pretrained.load_body(network, str(oracle / 'slim' / f'{net}.ckpt'))
    expected = np.load(oracle / 'slim' / f'{net}.npz')
    for size in ('regular', 'odd'):
        images = expected[size]
        output = network.body(images, training=False)['model_output']
        # A random net maps images of noise to similar features; the test needs a difference above its tolerance.
        assert difference(*expected[f'{size}_output']) > 1e-3
        height, width = images.shape[1:3]
        check(f'{net}, features at {height}×{width}', difference(output, expected[f'{size}_output']), 1e-5)
    # The format of today holds the very same.
    variables = model.named_variables(network.body)
    values = checkpoints.read(str(oracle / 'slim' / f'{net}-v2.ckpt'), {name: v.shape for name, v in variables.items()})
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable, values[name])


# A head sees no more of its net than the features: of the largest net, one will do.
PAIRS = [(head, net) for head, net in itertools.product(HEADS, NETS) if net != 'resnet_v1_101' or head == 'fc1024']
COMBINATIONS = [(*pair, *augmentation) for pair, augmentation in zip(PAIRS, itertools.cycle(AUGMENTATIONS))]


@pytest.mark.parametrize('head, net, flip, crop', COMBINATIONS)
def test_embedding_with_original_root(oracle, tmp_path, monkeypatch, check, head, net, flip, crop):
    # The original's root, in another place than where it was written.
    root = tmp_path / 'root'
    write_root(root, original_args(oracle, model_name=net, head_name=head))
    for file in (oracle / f'{net}-{head.removesuffix("_normalize")}').iterdir():
        os.link(file, root / file.name)
    flags = ['--experiment_root', root, '--dataset', oracle / 'images' / 'dataset.csv', '--batch_size', 5]
    flags += ['--flip_augment', '--checkpoint', 'checkpoint-25000'] if flip else []
    flags += ['--crop_augment', crop] if crop else []
    flags += ['--aggregator', 'mean'] if flip or crop == 'five' else []
    monkeypatch.setattr(sys, 'argv', ['embed.py', *map(str, flags)])
    embed.main()

    five = ('center', 'top_left', 'top_right', 'bottom_left', 'bottom_right')
    crops = five if crop == 'five' else (crop or 'resize',)
    names = [f'original{mirrored}_{part}' for mirrored in (('', '_flip') if flip else ('',)) for part in crops]
    expected = np.load(oracle / f'{net}-{head}.npz')
    expected = np.stack([expected[name] for name in names])
    with h5py.File(root / 'dataset_embeddings.h5') as file:
        if len(names) > 1:
            assert [name.decode() for name in file['augmentation_types']] == names
            check('embed.py on 9 roots of 3 nets and 4 heads, emb_aug', difference(file['emb_aug'], expected), 1e-4)
        check('embed.py on 9 roots of 3 nets and 4 heads, emb', difference(file['emb'], expected.mean(axis=0)), 1e-4)


@pytest.mark.parametrize('name', TRAININGS)
def test_training_goes_on_where_the_original_stopped(oracle, check, name):
    root = oracle / f'{name}-training'
    resumed = Run('train.py', '--experiment_root', root, '--resume')
    assert resumed.wait() == 0, resumed.output
    expected = dict(np.load(oracle / f'{name}-training.npz'))
    training = f'{TRAININGS[name]["model_name"]}, {STEPS - FIRST_STEPS} steps of train.py --resume'
    losses = np.load(root / 'log_losses.npy')[FIRST_STEPS:]
    check(f'{training}: losses', difference(losses, expected.pop('losses')[FIRST_STEPS:]), 1e-4)

    reader = checkpoints.open_reader(checkpoints.prefix(root, STEPS))
    assert set(reader.get_variable_to_shape_map()) == {*expected, 'identity_names'}
    reached = {name: difference(reader.get_tensor(name), value) for name, value in expected.items()}
    state = {name for name in reached if '/Adam' in name or '/' not in name}
    statistics = {name for name in reached if 'moving' in name}
    for part, names in (('weights', set(reached) - statistics - state), ('batch norm statistics', statistics),
                        ("Adam's moments, step", state)):
        check(f'{training}: {part}', max(reached[name] for name in names), 1e-4)
    # It did learn: a run that did nothing would differ by this much.
    before = checkpoints.open_reader(checkpoints.prefix(root, FIRST_STEPS))
    assert difference(before.get_tensor('emb/weights'), expected['emb/weights']) > 1e-3


def test_names_of_a_slim_checkpoint_path(oracle, tmp_path):
    slim = oracle / 'slim'
    for given, found in (
            ('resnet_v1_50.ckpt', 'resnet_v1_50.ckpt'), ('resnet_v1_50', 'resnet_v1_50.ckpt'),
            ('resnet_v1_50-v2.ckpt', 'resnet_v1_50-v2.ckpt'), ('resnet_v1_50-v2', 'resnet_v1_50-v2.ckpt'),
            ('resnet_v1_50-v2.ckpt.index', 'resnet_v1_50-v2.ckpt'),
            ('resnet_v1_50-v2.ckpt.data-00000-of-00001', 'resnet_v1_50-v2.ckpt')):
        assert checkpoints.find(str(slim / given)) == str(slim / found)
    with pytest.raises(InputError, match='several.*mobilenet_v1_1_224.ckpt.*resnet_v1_50-v2.ckpt'):
        checkpoints.find(str(slim))
    with pytest.raises(InputError, match='no checkpoint .*resnet_v1_152.*found there.*resnet_v1_101.ckpt'):
        checkpoints.find(str(slim / 'resnet_v1_152.ckpt'))
    os.link(slim / 'resnet_v1_50.ckpt', tmp_path / 'resnet_v1_50.ckpt')
    assert checkpoints.find(str(tmp_path)) == str(tmp_path / 'resnet_v1_50.ckpt')


@pytest.fixture(scope='module')
def mobilenet():
    return model.build('mobilenet_v1_1_224', 'direct', 16, (64, 32, 3))


def test_checkpoint_of_another_net(oracle, mobilenet):
    before = [variable.numpy() for variable in mobilenet.variables]
    with pytest.raises(InputError, match='lacks MobilenetV1/Conv2d_0/weights, MobilenetV1/Conv2d_0/BatchNorm/'):
        pretrained.load_body(mobilenet, str(oracle / 'slim' / 'resnet_v1_50.ckpt'))
    for variable, value in zip(mobilenet.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_body_of_an_earlier_experiment(oracle, mobilenet):
    head = mobilenet.get_layer('emb').kernel.numpy()
    root = str(oracle / 'mobilenet-training')
    pretrained.load_body(mobilenet, root)
    reader = checkpoints.open_reader(checkpoints.find(root))
    for name, variable in model.named_variables(mobilenet.body).items():
        np.testing.assert_array_equal(variable, reader.get_tensor(name))
    np.testing.assert_array_equal(mobilenet.get_layer('emb').kernel, head)


@pytest.mark.parametrize('file', ['mobilenet_v1_1_224.ckpt', 'mobilenet_v1_1_224-v2.ckpt.index',
                                  'mobilenet_v1_1_224-v2.ckpt.data-00000-of-00001'])
@pytest.mark.parametrize('share', [0, 0.5, 0.99])
def test_truncated_checkpoint(oracle, mobilenet, tmp_path, file, share):
    for path in (oracle / 'slim').glob('mobilenet*.ckpt*'):
        shutil.copy(path, tmp_path)
    os.truncate(tmp_path / file, int(share * (tmp_path / file).stat().st_size))
    with pytest.raises(InputError, match='damaged'):
        pretrained.load_body(mobilenet, str(tmp_path / file))


def test_args_with_unknown_and_missing_keys(oracle, tmp_path):
    args = original_args(oracle, model_name='mobilenet_v1_1_224', head_name='direct', a_flag_of_a_fork=3)
    del args['head_name'], args['metric']
    write_root(tmp_path / 'root', args)
    for file in (oracle / 'mobilenet_v1_1_224-fc1024').iterdir():
        os.link(file, tmp_path / 'root' / file.name)
    # The default head is fc1024, as it was in the original.
    _, path = inference.from_experiment(str(tmp_path / 'root'))
    assert path.endswith('checkpoint-25000')
    write_root(tmp_path / 'other', {**args, 'head_name': 'direct'})
    with pytest.raises(InputError, match='no checkpoint'):
        inference.from_experiment(str(tmp_path / 'other'))


def summary_of(path):
    lines = list(inspect_checkpoint.describe(str(path)))
    return lines[:lines.index('')], lines[lines.index('') + 1:]


def test_descriptions(oracle, tmp_path, monkeypatch):
    built, fit_net = [], inspect_checkpoint.fit_net
    monkeypatch.setattr(inspect_checkpoint, 'fit_net', lambda net, *more: built.append(net) or fit_net(net, *more))
    # The original's own checkpoint: the root may have later ones, of the test that resumes this training.
    tensors, summary = summary_of(oracle / 'mobilenet-training' / f'checkpoint-{FIRST_STEPS}')
    assert 'MobilenetV1/Conv2d_0/weights float32 [3, 3, 3, 32]' in tensors
    assert 'MobilenetV1/Conv2d_0/weights/Adam float32 [3, 3, 3, 32]' in tensors
    assert summary[0].startswith(f'checkpoint: {oracle}/mobilenet-training/checkpoint-{FIRST_STEPS},') and 'V2' in summary[0]
    assert summary[2:] == [
        'net: mobilenet_v1_1_224, all of its 135 variables',
        'head: fc1024 (16 dimensions) or fc1024_normalize (16 dimensions)',
        'optimizer: Adam with the moments of 86 variables']
    assert built == ['mobilenet_v1_1_224'], 'the net of args.json fits'
    _, summary = summary_of(oracle / 'slim' / 'mobilenet_v1_1_224-v2.ckpt')
    assert summary[2] == 'net: mobilenet_v1_1_224, all of its 135 variables' and summary[4].startswith('optimizer: ')
    assert built[1:] == plugins.choices('nets')

    # A few nets will do from here on.
    choices = {'nets': ['mnist', 'resnet_v1_50'], 'heads': ['direct', 'fc1024']}
    monkeypatch.setattr(plugins, 'choices', choices.get)
    tensors, summary = summary_of(oracle / 'slim' / 'resnet_v1_50.ckpt')
    assert 'V1' in summary[0]
    assert summary[1:5] == [
        'step: 0', 'net: resnet_v1_50, all of its 265 variables',
        'head: none that fits, so this is good for --initial_checkpoint', 'optimizer: none of Adam']
    assert summary[5].startswith('besides: 5 tensors') and 'mean_rgb' in summary[5]

    tf.raw_ops.SaveV2(prefix=str(tmp_path / 'few'), tensor_names=['mnist/conv1/weights'], shape_and_slices=[''],
                      tensors=[tf.zeros((5, 5, 3, 32))])
    _, summary = summary_of(tmp_path / 'few')
    assert summary[1] == 'net: none of nets/; the nearest, mnist lacks 7 of 8, such as mnist/conv1/biases'

    path = tf.train.Checkpoint(step=tf.Variable(1)).save(str(tmp_path / 'objects'))
    assert 'object-based' in summary_of(path)[1][-1]

    (tmp_path / 'notes.txt').write_text('no checkpoint')
    with pytest.raises(InputError, match='notes.txt is no TensorFlow checkpoint'):
        summary_of(tmp_path / 'notes.txt')

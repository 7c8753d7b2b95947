"""Schedules, the optimizer, random erasing, nets and pre-trained weights; validation while training, and its resuming."""
import argparse
import functools
import json
import math
import os
import re
import shutil

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from _few_units import few_units
from _runs import Fault, Run, ended_in_one_sentence
from conftest import run_script
from nets import _pooling
from objectives.xent import Objective
from tripletreid import plugins
from tripletreid.dataset import load_dataset
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, best_checkpoint, checkpoints, flag_checks, resumption, train_flags
from tripletreid.input_pipeline import augmentation
from tripletreid.modeling import inference, inspect_checkpoint, model, pretrained
from tripletreid.training import optimizer, schedule, validation

pytestmark = pytest.mark.long

TRAIN = ['--experiment_root', 'root', '--train_set', 'a.csv', '--image_root', '.']

VALIDATE = ['--eval_query', 'q.csv', '--eval_gallery', 'g.csv', '--eval_excluder', 'diagonal', '--eval_frequency', '5']


def parsed(*flags):
    return train_flags.make_parser().parse_args([*TRAIN, *flags])


# --- Schedules and Adam -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('flags, step, expected', [
    ([], 0, 3e-4),
    ([], 15000, 3e-4),
    ([], 20000, 3e-4 * math.sqrt(0.001)),
    (['--decay_start_iteration', '-1'], 24999, 3e-4),
    (['--lr_schedule', 'constant'], 24999, 3e-4),
    (['--lr_schedule', 'cosine'], 15000, 3e-4),
    (['--lr_schedule', 'cosine'], 20000, 1.5e-4),
    (['--lr_schedule', 'cosine', '--decay_start_iteration', '0'], 24999, 0.0),
    (['--lr_schedule', 'step', '--lr_steps', '100,200'], 99, 3e-4),
    (['--lr_schedule', 'step', '--lr_steps', '100,200'], 100, 3e-5),
    (['--lr_schedule', 'step', '--lr_steps', '100,200', '--lr_step_factor', '0.5'], 200, 7.5e-5),
    (['--warmup_iterations', '10'], 0, 3e-5),
    (['--warmup_iterations', '10'], 4, 1.5e-4),
    (['--warmup_iterations', '10'], 10, 3e-4),
])
def test_learning_rate(flags, step, expected):
    assert schedule.learning_rate(step, parsed(*flags)) == pytest.approx(expected, rel=1e-6, abs=1e-10)


def test_beta1_changes_when_the_decay_starts_and_only_if_asked_to():
    assert [schedule.beta1(step, parsed()) for step in (0, 15000)] == [0.9, 0.9]
    lowered = parsed('--decay_beta1', '0.5')
    assert [schedule.beta1(step, lowered) for step in (0, 14999, 15000)] == [0.9, 0.9, 0.5]
    never = parsed('--decay_beta1', '0.5', '--decay_start_iteration', '-1')
    assert schedule.beta1(20000, never) == 0.9


@pytest.mark.parametrize('weight_decay', (0.0, 0.1))
def test_adam_is_the_published_algorithm(weight_decay):
    random = np.random.default_rng(0)
    start, kept = random.normal(size=5), random.normal(size=3)
    variables = {'a': keras.Variable(start, dtype='float32'), 'b': keras.Variable(kept, dtype='float32')}
    adam = optimizer.Adam(variables, weight_decay)
    value, first, second = start, 0, 0
    for step in range(1, 6):
        gradient = random.normal(size=5)
        adam.apply({'a': tf.constant(gradient, tf.float32)}, tf.constant(0.01), tf.constant(0.9))
        gradient = gradient + weight_decay * value
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient ** 2
        rate = 0.01 * math.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step)
        value = value - rate * first / (np.sqrt(second) + 1e-8)
    np.testing.assert_allclose(variables['a'].numpy(), value, rtol=1e-5)
    np.testing.assert_array_equal(variables['b'].numpy(), kept.astype(np.float32))
    assert not adam.variables['b/Adam'].numpy().any()


def test_gradients_are_clipped_by_their_norm_taken_together():
    gradients = [tf.constant([3.0]), tf.constant([0.0, 4.0])]
    assert optimizer.clip(gradients, None) is gradients
    clipped = [gradient.numpy().tolist() for gradient in optimizer.clip(gradients, 1.0)]
    assert np.concatenate(clipped) == pytest.approx([0.6, 0.0, 0.8])
    assert np.concatenate(optimizer.clip(gradients, 6.0)) == pytest.approx([3.0, 0.0, 4.0])


@pytest.mark.parametrize('flags, part', [
    (['--loss', 'none'], '--xent_weight'),
    (['--metric_weight', '0'], '--xent_weight'),
    (['--lr_schedule', 'step'], '--lr_steps'),
    (['--lr_steps', '5'], '--lr_schedule'),
    (['--lr_schedule', 'step', '--lr_steps', '9,5'], 'ascending'),
    (['--lr_schedule', 'step', '--lr_steps', '9,x'], 'lr_steps'),
    (['--random_erasing', '1.5'], 'from 0 to 1'),
    (['--eval_frequency', '5'], '--eval_query'),
    (['--eval_query', 'q.csv', '--eval_gallery', 'g.csv', '--eval_excluder', 'diagonal'], '--eval_frequency'),
    (['--eval_excluder', 'nothing'], 'nothing'),
    ([*VALIDATE, '--eval_query', 'q.csv', 'r.csv'], 'each query set its gallery'),
    ([*VALIDATE, '--eval_excluder', 'diagonal', 'mars'], 'one for all'),
    (['--eval_flip'], '--eval_frequency'),
    (['--eval_metric', 'cityblock'], '--eval_frequency'),
])
def test_flags_that_do_not_fit(flags, part, capsys):
    parser = train_flags.make_parser()
    with pytest.raises(SystemExit) as exit_of:
        flag_checks.check(parser.parse_args([*TRAIN, *flags]), parser)
    assert exit_of.value.code == 2 and part in capsys.readouterr().err


@pytest.mark.parametrize('net, given, expected', [
    ((256, 128), {}, (288, 144)),  # the original's
    ((32, 32), {}, (36, 36)),
    ((28, 20), {}, (32, 23)),
    ((64, 32), {'height': 80}, (80, 36)),
    ((64, 32), {'height': 80, 'width': 40}, (80, 40)),
])
def test_pre_crop_size_follows_the_net_input_and_is_stored(net, given, expected, tmp_path):
    args = parsed('--experiment_root', str(tmp_path), '--net_input_height', str(net[0]), '--net_input_width', str(net[1]),
                  *(text for side, pixels in given.items() for text in (f'--pre_crop_{side}', str(pixels))))
    assert (args.pre_crop_height, args.pre_crop_width) == expected
    arguments.save(args)
    stored = json.loads((tmp_path / 'args.json').read_text())
    assert (stored['pre_crop_height'], stored['pre_crop_width']) == expected


@pytest.mark.parametrize('stored', [{}, {'pre_crop_height': None, 'pre_crop_width': None},
                                    {'pre_crop_height': 288, 'pre_crop_width': 144}])
def test_roots_of_before_keep_their_pre_crop_size(stored, tmp_path):
    (tmp_path / 'args.json').write_text(json.dumps({'net_input_height': 32, 'net_input_width': 32, **stored}))
    args, _ = arguments.load(str(tmp_path))
    assert (args.pre_crop_height, args.pre_crop_width) == (288, 144)
    resumed = train_flags.make_parser().parse_args(['--experiment_root', str(tmp_path), '--resume'])
    merged, _ = resumption.merge_with_stored(resumed, {'experiment_root', 'resume'})
    assert (merged.pre_crop_height, merged.pre_crop_width) == (288, 144)


@pytest.mark.parametrize('pre_crop, warned', [((36, 36), False), ((48, 48), False), ((49, 32), True), ((32, 49), True),
                                              ((288, 144), True)])
def test_crops_of_a_small_part_are_warned_of(pre_crop, warned):
    flags = ['--net_input_height', '32', '--net_input_width', '32', '--pre_crop_height', str(pre_crop[0]),
             '--pre_crop_width', str(pre_crop[1])]
    notices = [notice for notice in flag_checks.notices(parsed(*flags, '--crop_augment')) if 'Crops' in notice]
    assert bool(notices) == warned and (not warned or f'{pre_crop[0]}x{pre_crop[1]}' in notices[0] and '36x36' in notices[0])
    assert not any('Crops' in notice for notice in flag_checks.notices(parsed(*flags)))


# --- Random erasing ---------------------------------------------------------------------------------------------------

def test_random_erasing():
    image, args = tf.zeros([60, 40, 3]), parsed('--random_erasing', '0.5')

    def augmented(step):
        return augmentation.augment(image, 7, step, 3, args)

    steps = tf.data.Dataset.range(1500)
    areas, aspects, tops, bottoms = [], [], [], []
    for erased in steps.map(augmented).as_numpy_iterator():
        where = erased[:, :, 0] > 0
        if not where.any():
            continue
        rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
        assert where.sum() == len(rows) * len(columns) and np.ptp(rows) < len(rows) and np.ptp(columns) < len(columns)
        np.testing.assert_allclose(erased[where], np.broadcast_to(augmentation.MEAN_COLOUR, (where.sum(), 3)), rtol=1e-6)
        areas.append(where.mean())
        aspects.append(len(rows) / len(columns))
        tops.append(rows[0] == 0)
        bottoms.append(rows[-1] == 59)
    assert 0.45 < len(areas) / 1500 < 0.55
    assert 0.015 < min(areas) < 0.03 and 0.37 < max(areas) < 0.42 and 0.17 < np.mean(areas) < 0.24
    assert 0.27 < min(aspects) < 0.4 and 2.5 < max(aspects) < 3.8
    assert any(tops) and any(bottoms)
    np.testing.assert_array_equal(augmented(tf.constant(5, tf.int64)), list(steps.map(augmented).skip(5).take(1))[0])


def test_without_erasing_an_image_stays_as_it_is():
    image = tf.random.stateless_uniform([6, 4, 3], (0, 1))
    np.testing.assert_array_equal(augmentation.augment(image, 7, 1, 3, parsed()), image)


# --- Nets -------------------------------------------------------------------------------------------------------------

# Number of parameters as published, without the classifier of 1000 classes.
NETS = {
    'resnet50': ({}, 2048, 25_636_712 - 2049 * 1000),
    'resnet50_mid': ({}, 3072, 25_636_712 - 2049 * 1000 + 4096 * 1024 + 4 * 1024),
    'densenet121': ({}, 1024, 8_062_504 - 1025 * 1000),
    'convnext_tiny': ({}, 768, 28_589_128 - 769 * 1000),
    # The published figure of torchvision counts no moving statistics: a mean and a variance for 26560 channels.
    'resnet_v1_50': ({'last_stride': 1, 'pooling': 'gem'}, 2048, 25_557_032 - 2049 * 1000 + 2 * 26560 + 1),
}


@pytest.mark.parametrize('name', NETS)
def test_net_trains_and_embeds_as_it_trained(name, tmp_path, monkeypatch):
    options, features, parameters = NETS[name]
    flags = [text for option, value in options.items() for text in (f'--{option}', str(value))]
    args = parsed('--experiment_root', str(tmp_path), '--model_name', name, '--head_name', 'bnneck', '--embedding_dim',
                  '8', '--net_input_height', '64', '--net_input_width', '32', *flags)
    body = model.without_values(model.build_for, args).body
    assert body.output['model_output'].shape == (None, features)
    assert body.count_params() == parameters
    few_units(monkeypatch.setattr)
    network = model.with_endpoints(model.build_for(args), [Objective(args, 3).endpoints])
    images = tf.random.stateless_uniform([4, 64, 32, 3], (1, 2), 0, 255)
    variables = model.named_variables(network)
    assert len(variables) == len(network.variables)
    trainable = {name: variable for name, variable in variables.items() if variable.trainable}
    assert 'classifier/weights' in trainable and 'bnneck/BatchNorm/beta' not in trainable
    with tf.GradientTape() as tape:
        endpoints = network(images, training=True)
        loss = tf.reduce_mean(tf.square(endpoints['metric_emb'])) + tf.reduce_mean(tf.square(endpoints['logits'] - 1))
    gradients = tape.gradient(loss, [variable.value for variable in trainable.values()])
    assert [name for name, gradient in zip(trainable, gradients) if gradient is None] == []
    before = {name: variable.numpy() for name, variable in variables.items()}
    optimizer.Adam(trainable).apply(dict(zip(trainable, gradients)), tf.constant(1e-3))
    changed = [name for name, variable in trainable.items() if not np.array_equal(variable, before[name])]
    assert len(changed) > 0.95 * len(trainable)

    arguments.save(args)
    checkpoints.save(str(tmp_path), 1, variables)
    restored, _ = inference.from_experiment(str(tmp_path))
    assert 'logits' not in restored.output
    np.testing.assert_array_equal(restored(images, training=False)['emb'], network(images, training=False)['emb'])


def test_last_stride_doubles_the_resolution_of_the_last_stage():
    shapes = [model.without_values(model.build, 'resnet_v1_50', 'direct', 4, (64, 32, 3), **options).output['block4'].shape
              for options in ({}, {'last_stride': 2}, {'last_stride': 1})]
    assert shapes == [(None, 2, 1, 2048), (None, 2, 1, 2048), (None, 4, 2, 2048)]


def test_an_option_that_a_net_does_not_have():
    with pytest.raises(InputError, match='mnist has no choice of --last_stride'):
        model.build('mnist', 'direct', 2, (28, 28, 3), last_stride=1)


def test_generalised_mean_pooling():
    layer = _pooling.GeneralisedMean()
    maps = np.random.default_rng(0).normal(1, 1, (2, 3, 4, 5)).astype(np.float32)
    expected = (np.maximum(maps, 1e-6) ** 3.0).mean(axis=(1, 2)) ** (1 / 3)
    np.testing.assert_allclose(layer(maps), expected, rtol=1e-5)
    layer.p.assign(1.0)
    np.testing.assert_allclose(layer(np.abs(maps)), np.abs(maps).mean(axis=(1, 2)), rtol=1e-5)


# --- Weights of Keras -------------------------------------------------------------------------------------------------

def write_legacy(path, net):
    """A weights file as Keras distributes them: a group for each layer, attributes that name layers and weights."""
    with h5py.File(path, 'w') as file:
        file.attrs['layer_names'] = [layer.name.encode() for layer in net.layers]
        for layer in net.layers:
            group = file.create_group(layer.name)
            group.attrs['weight_names'] = [variable.path.encode() for variable in layer.weights]
            for variable in layer.weights:
                group[variable.path] = variable.numpy()


@pytest.fixture(scope='module')
def densenet(tmp_path_factory):
    """A DenseNet of Keras with random weights, this project's of the same few units, and files of both formats."""
    with pytest.MonkeyPatch.context() as patch:
        few_units(patch.setattr)
        net = keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(32, 32, 3))
        network = model.build('densenet121', 'features', 8, (32, 32, 3), pooling='gem')
    folder = tmp_path_factory.mktemp('keras')
    net.save_weights(folder / 'new.weights.h5')
    write_legacy(folder / 'old_notop.h5', net)
    return net, network, folder


@pytest.mark.parametrize('file', ('new.weights.h5', 'old_notop.h5'))
def test_weights_that_keras_distributes(densenet, file):
    net, network, folder = densenet
    for variable in network.body.variables:
        variable.assign(tf.zeros_like(variable))
    pretrained.load_body(network, str(folder / file))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = net(keras.applications.densenet.preprocess_input(images.copy()), training=False)
    np.testing.assert_allclose(network.body(images, training=False)['features'], expected, rtol=1e-4, atol=1e-5)


def test_weights_of_keras_that_do_not_fit(densenet, tmp_path):
    _, network, folder = densenet
    with pytest.raises(InputError, match='another net'):
        other = model.without_values(model.build, 'convnext_tiny', 'direct', 4, (32, 32, 3))
        pretrained.load_body(other, str(folder / 'new.weights.h5'))
    with pytest.raises(InputError, match='mnist cannot take'):
        pretrained.load_body(model.build('mnist', 'direct', 4, (28, 28, 3)), str(folder / 'old_notop.h5'))
    (tmp_path / 'garbage.h5').write_bytes(b'garbage')
    whole = (folder / 'new.weights.h5').read_bytes()
    (tmp_path / 'half.weights.h5').write_bytes(whole[:len(whole) // 2])
    shutil.copy(folder / 'old_notop.h5', tmp_path / 'more.h5')
    with h5py.File(tmp_path / 'more.h5', 'a') as file:
        file['top'] = np.zeros(3)
    for name in ('garbage.h5', 'half.weights.h5', 'more.h5', 'none.h5'):
        with pytest.raises(InputError, match=name):
            pretrained.load_body(network, str(tmp_path / name))


# --- Weights of an earlier experiment ---------------------------------------------------------------------------------

def body_and_more(root, *more):
    """A checkpoint in a folder with the body of the net mnist and further variables by their names."""
    body = model.build('mnist', 'direct', 2, (28, 28, 3)).body
    checkpoints.save(str(root), 0, {**model.named_variables(body), **{name: tf.fill([2], 5.0) for name in more}})
    return str(root)


def test_other_contents_of_a_checkpoint_are_listed(tmp_path):
    slim = ('global_step', 'mean_rgb', 'mnist/mean_rgb', 'mnist/logits/biases', 'mnist/Logits/Conv2d_1c_1x1/weights')
    slots = [f'mnist/conv1/weights/{slot}' for slot in ('RMSProp', 'RMSProp_1', 'Momentum', 'ExponentialMovingAverage')]
    ours = ('mnist/conv1/biases/Adam', 'beta1_power', 'loss_scale', 'classifier/weights', 'classifier/weights/Adam_1')
    head = ['emb/biases', 'fully_connected/BatchNorm/beta', 'fully_connected/weights']
    root = body_and_more(tmp_path, *slim, *slots, *ours, *head)
    network = model.build('mnist', 'fc1024', 2, (28, 28, 3))
    assert pretrained.load_body(network, root) == head
    reader = checkpoints.open_reader(checkpoints.find(root))
    np.testing.assert_array_equal(network.body.get_layer('mnist.conv1').kernel, reader.get_tensor('mnist/conv1/weights'))


def test_a_checkpoint_of_another_net_is_refused_in_a_short_sentence(tmp_path):
    path = checkpoints.find(body_and_more(tmp_path))
    needed = {f'resnet/block{number}/weights': [3] for number in range(500)}
    with pytest.raises(InputError, match=f'lacks .* and 497 more. freeze.py --describe {path} ') as error:
        checkpoints.read(path, needed)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize('name', ('mnist/conv9/weights', 'gem/p'))
def test_a_variable_of_another_body_is_refused(name, tmp_path):
    network = model.build('mnist', 'direct', 2, (28, 28, 3))
    before = [variable.numpy() for variable in network.variables]
    with pytest.raises(InputError, match=f'checkpoint-0 holds {name}, which the net mnist .*--pooling'):
        pretrained.load_body(network, body_and_more(tmp_path, name, 'emb/weights'))
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_the_exponent_of_an_earlier_pooling_is_taken_and_logged(tmp_path, monkeypatch):
    earlier = model.build('mobilenet_v1_1_224', 'direct', 2, (32, 32, 3), pooling='gem')
    earlier.get_layer('gem').p.assign(4.5)
    later, fresh = (model.build('mobilenet_v1_1_224', 'direct', 2, (32, 32, 3), pooling='gem') for _ in range(2))
    checkpoints.save(str(tmp_path), 0, model.named_variables(earlier))
    pretrained.load_body(later, str(tmp_path))
    averaging = {name: variable for name, variable in model.named_variables(earlier).items() if name != 'gem/p'}
    checkpoints.save(str(tmp_path), 1, averaging)
    pretrained.load_body(fresh, str(tmp_path / 'checkpoint-1'))
    assert [float(network.get_layer('gem').p) for network in (later, fresh)] == [4.5, 3.0]
    monkeypatch.setattr(plugins, 'choices', {'nets': ['mobilenet_v1_1_224', 'mnist'], 'heads': ['direct']}.get)
    assert 'net: mobilenet_v1_1_224 --pooling gem, all of its 136 variables' in inspect_checkpoint.describe(
        str(tmp_path / 'checkpoint-0'))


# --- Validation while training ----------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    assert run_script('make_dataset.py', 'digits', folder, '--out', folder).returncode == 0
    for subset in ('query', 'test'):  # Validated on often: a part of them will do.
        csv = folder / f'digits_{subset}.csv'
        csv.write_text(''.join(csv.read_text().splitlines(keepends=True)[::6]))
    return folder


def run_with_few_units(script, *flags):
    return Run(script, *flags, fault=Fault(functools.partial(few_units, setattr), 'start'))


def train(digits, root, *flags):
    return run_with_few_units(
        'train.py', '--experiment_root', root, '--train_set', digits / 'digits_train.csv', '--image_root', digits,
        '--model_name', 'mobilenet_v1_1_224', '--head_name', 'bnneck', '--embedding_dim', 8, '--batch_p', 4,
        '--batch_k', 2, '--net_input_height', 32, '--net_input_width', 32, '--train_iterations', 8,
        '--decay_start_iteration', 4, '--checkpoint_frequency', 2, '--loss', 'batch_sample', '--margin', 0.5,
        '--xent_weight', 0.5, '--random_erasing', 0.5, '--weight_decay', 1e-4, '--gradient_clip', 5,
        '--decay_beta1', 0.5, '--warmup_iterations', 3, '--freeze_body_iterations', 2, '--deterministic',
        '--detailed_logs', '--eval_query', digits / 'digits_query.csv', '--eval_gallery', digits / 'digits_test.csv',
        '--eval_excluder', 'diagonal', '--eval_frequency', 4, *flags)


@pytest.fixture(scope='module')
def run(digits, tmp_path_factory):
    root = tmp_path_factory.mktemp('runs') / 'whole'
    run = train(digits, root)
    assert run.wait() == 0, run.output
    return root


def test_validation_is_noted_and_logged(run):
    noted = json.loads((run / 'checkpoint-best').read_text())
    assert [entry['step'] for entry in noted['validations']] == [4, 8]
    best = max(noted['validations'], key=lambda entry: entry['mAP'])
    assert noted['checkpoint'] == f'checkpoint-{best["step"]}' and noted['mAP'] == best['mAP']
    assert best['scores']['mAP_sklearn'] == best['mAP'] and best['scores']['rank-1'] == best['top1']
    log = (run / 'train.log').read_text()
    assert 'mobilenet_v1_1_224 starts from random weights' in log and '--model_name conv4, lunet or mnist' in log
    for entry in noted['validations']:
        assert (f'[VALIDATION] train: iter:{entry["step"]:6d}, validation mAP: {entry["mAP"]:.2%}, '
                f'top-1: {entry["top1"]:.2%} (embed.py --checkpoint checkpoint-{entry["step"]})') in log


def test_the_best_checkpoint_embeds_to_the_noted_score(run, digits, monkeypatch):
    few_units(monkeypatch.setattr)
    network, path = inference.from_experiment(str(run), 'checkpoint-best')
    noted = json.loads((run / 'checkpoint-best').read_text())
    assert os.path.basename(path) == noted['checkpoint']
    sets = [load_dataset(digits / f'digits_{subset}.csv') for subset in ('query', 'test')]
    query, gallery = (np.concatenate([embs[0] for embs in inference.embed_files(
        network, [str(digits / fid) for fid in images_of.fids])]) for images_of in sets)
    dists = np.linalg.norm(query[:, None].astype(np.float64) - gallery[None], axis=2)
    same = sets[0].pids[:, None] == sets[1].pids
    precisions = [average_precision_score(query_matches, -row) for query_matches, row in zip(same, dists)]
    assert np.mean(precisions) == pytest.approx(noted['mAP'], abs=1e-6)
    nearest = same[np.arange(len(same)), dists.argmin(axis=1)]
    assert nearest.mean() == pytest.approx(noted['top1'])


def test_embedding_with_the_noted_flags_gives_the_noted_score(digits, tmp_path):
    """A run with --crop_augment, where embed.py's default gives another score and names the flag; in addition mirrored
    images and another metric."""
    root = tmp_path / 'cropped'
    run = train(digits, root, '--model_name', 'mnist', '--crop_augment', '--pre_crop_height', 48, '--pre_crop_width',
                48, '--train_iterations', 2, '--eval_frequency', 2, '--freeze_body_iterations', 0, '--eval_flip',
                '--eval_metric', 'cityblock')
    assert run.wait() == 0, run.output
    noted = json.loads((root / 'checkpoint-best').read_text())
    assert f'top-1: {noted["top1"]:.2%} (embed.py {noted["embed_flags"]})' in run.output
    assert noted['embed_flags'] == ('--checkpoint checkpoint-2 --crop_augment center --flip_augment '
                                    '--aggregator mean')

    def embed(subset, *flags):
        embedding = Run('embed.py', '--experiment_root', root, '--dataset', digits / f'digits_{subset}.csv', '--quiet',
                        '--filename', f'{subset}.h5', *flags)
        assert embedding.wait() == 0, embedding.output
        with h5py.File(root / f'{subset}.h5') as file:
            return file['emb'][:], embedding.output

    flags = noted['embed_flags'].split()
    (as_validated, said), _ = embed('query', *flags), embed('test', *flags)
    assert said == ''
    evaluation = run_script(
        'evaluate.py', '--excluder', 'diagonal', '--metric', 'cityblock', '--filename', root / 'scores.json',
        '--query_dataset', digits / 'digits_query.csv', '--query_embeddings', root / 'query.h5',
        '--gallery_dataset', digits / 'digits_test.csv', '--gallery_embeddings', root / 'test.h5')
    assert evaluation.returncode == 0, evaluation.stderr
    assert json.loads((root / 'scores.json').read_text())['mAP'] == pytest.approx(noted['mAP'], abs=1e-9)
    resized, said = embed('query')
    assert np.abs(resized - as_validated).max() > 0.01 * np.abs(as_validated).max()
    assert 'crop augmentation differs' in said and 'validation while training embeds with --crop_augment center' in said


def test_notes_without_flags_are_read_and_kept(tmp_path):
    """As they were written before."""
    (tmp_path / 'checkpoint-best').write_text('{"validations": [{"step": 1, "mAP": 0.5, "top1": 0.25}]}')
    second = {'mAP': 0.25, 'top1': 0.5, 'embed_flags': '--checkpoint checkpoint-2'}
    best_checkpoint.note(str(tmp_path), 2, second)
    assert best_checkpoint.results(str(tmp_path)) == [{'step': 1, 'mAP': 0.5, 'top1': 0.25}, {'step': 2, **second}]
    assert best_checkpoint.best_step(str(tmp_path)) == 1


def test_notes_several_sets_sets(tmp_path):
    flags = '--checkpoint checkpoint-4'
    sets = {'day': {'mAP': 0.75, 'top1': 1.0, 'embed_flags': flags},
            'night': {'mAP': 0.25, 'top1': 0.5, 'embed_flags': f'{flags} --pool_tracklets mean'}}
    several_sets = {'mAP': 0.5, 'top1': 0.75, 'sets': sets}
    best_checkpoint.note(str(tmp_path), 4, several_sets)
    best_checkpoint.note(str(tmp_path), 8, {'mAP': 0.25, 'top1': 0.5, 'embed_flags': '--checkpoint checkpoint-8'})
    assert best_checkpoint.results(str(tmp_path))[0] == {'step': 4, **several_sets}
    noted = json.loads((tmp_path / 'checkpoint-best').read_text())
    assert noted['sets'] == sets and noted['checkpoint'] == 'checkpoint-4'
    for damage in ('[]', '{"day": 1}', '{"day": {"mAP": 1}}'):
        (tmp_path / 'checkpoint-best').write_text(
            f'{{"validations": [{{"step": 1, "mAP": 0.5, "top1": 0.25, "sets": {damage}}}]}}')
        with pytest.raises(InputError, match='damaged'):
            best_checkpoint.results(str(tmp_path))


def test_the_note_of_a_single_set_is_what_it_was(tmp_path):
    best_checkpoint.note(str(tmp_path), 4, {'mAP': 0.5, 'top1': 0.25, 'embed_flags': '--checkpoint checkpoint-4'})
    assert (tmp_path / 'checkpoint-best').read_text() == '''{
  "checkpoint": "checkpoint-4",
  "embed_flags": "--checkpoint checkpoint-4",
  "mAP": 0.5,
  "step": 4,
  "top1": 0.25,
  "validations": [
    {
      "embed_flags": "--checkpoint checkpoint-4",
      "mAP": 0.5,
      "step": 4,
      "top1": 0.25
    }
  ]
}
'''


@pytest.mark.parametrize('several', (False, True))
def test_validation_sets_in_args_json(tmp_path, several):
    more = ['--eval_query', 'q.csv', 'r.csv', '--eval_gallery', 'g.csv', 'g.csv'] * several
    args = train_flags.make_parser().parse_args(['--experiment_root', str(tmp_path), *TRAIN[2:], *VALIDATE, *more])
    arguments.save(args)
    stored = json.loads((tmp_path / 'args.json').read_text())
    # A single one as it was before there could be several.
    assert stored['eval_query'] == (['q.csv', 'r.csv'] if several else 'q.csv')
    assert stored['eval_excluder'] == 'diagonal'
    assert arguments.load(str(tmp_path))[0] == args


@pytest.mark.parametrize('name, value', [
    ('eval_query', []), ('eval_query', ['q.csv', '--resume']), ('eval_query', ['q.csv', 3]), ('eval_query', [['q.csv']]),
    ('eval_query', ['q.csv', '']), ('eval_excluder', ['diagonal', 'nothing']), ('batch_p', [4, 4]), ('train_set', ['a', 3])])
def test_lists_in_args_json_that_cannot_be(tmp_path, name, value):
    (tmp_path / 'args.json').write_text(json.dumps({name: value}))
    with pytest.raises(InputError, match=name):
        arguments.load(str(tmp_path))


def test_a_frozen_body_stays_as_it_is_and_then_trains(run):
    readers = [tf.train.load_checkpoint(str(run / f'checkpoint-{step}')) for step in (0, 2, 4)]
    names = [name for name in readers[0].get_variable_to_shape_map()
             if not name.endswith(('/Adam', '/Adam_1', '_power', 'global_step', 'identity_names'))]
    assert 'classifier/weights' in names
    for name in names:
        start, frozen, trained = (reader.get_tensor(name) for reader in readers)
        is_body = name.startswith('MobilenetV1/')
        assert np.array_equal(start, frozen) == (is_body or name == 'bnneck/BatchNorm/beta'), name
        if name.endswith(('weights', 'moving_mean')):
            assert not np.array_equal(frozen, trained), name


def test_what_joins_late_makes_steps_of_the_usual_size():
    """As the first and second step of Adam are: the learning rate where the gradient stays the same."""
    variables = {name: keras.Variable(np.zeros(3, np.float32)) for name in ('head', 'body')}
    adam = optimizer.Adam(variables, late=['body'])
    gradient = tf.constant([1.0, -2.0, 3e-3])
    for step in range(20):
        body = {} if step < 15 else {'body': gradient}
        adam.apply({'head': gradient, **body}, tf.constant(0.01))
    for name, steps in (('head', 20), ('body', 5)):
        np.testing.assert_allclose(variables[name], -0.01 * steps * np.sign(gradient), rtol=1e-3)
    assert {name for name in adam.variables if 'power' in name} == {
        'beta1_power', 'beta2_power', 'late_beta1_power', 'late_beta2_power'}


def test_resuming_gives_the_very_run(run, digits):
    resumed = run.parent / 'resumed'
    shutil.copytree(run, resumed)
    # As after an interruption during the first validation.
    for file in ('checkpoint-6.index', 'checkpoint-8.index', 'checkpoint', 'checkpoint-best'):
        (resumed / file).unlink()
    again = run_with_few_units('train.py', '--experiment_root', resumed, '--resume')
    assert again.wait() == 0 and re.search('Resuming from .*checkpoint-4\\.', again.output), again.output
    for name in ('log_embs.npy', 'log_losses.npy', 'log_fids.npy', 'checkpoint-best',
                 'checkpoint-8.data-00000-of-00001'):
        assert (resumed / name).read_bytes() == (run / name).read_bytes(), name


def test_the_best_checkpoint_is_never_removed(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.save(str(tmp_path), step, {'a': tf.constant(float(step))}, keep=1)
        best_checkpoint.note(str(tmp_path), step, {'mAP': 0.5 if step == 2 else 0.1, 'top1': 0.0})
    assert sorted(checkpoints.steps_in(tmp_path)) == [2, 4]
    assert checkpoints.find(str(tmp_path / 'checkpoint-best')) == str(tmp_path / 'checkpoint-2')
    best_checkpoint.forget_after(str(tmp_path), 1)
    assert best_checkpoint.best_step(str(tmp_path)) == 1
    (tmp_path / 'checkpoint-best').write_text('garbage')
    with pytest.raises(InputError, match='damaged'):
        best_checkpoint.best_step(str(tmp_path))


def test_queries_without_any_match_are_an_error_before_anything_is_written(digits, tmp_path):
    (tmp_path / 'query.csv').write_text('nobody,digits/0000.png\n')
    run = train(digits, tmp_path / 'root', '--eval_query', tmp_path / 'query.csv')
    ended_in_one_sentence(run, 'query.csv', 'has a match')
    assert not (tmp_path / 'root').exists()


def test_validation_sets_of_one_name(digits, tmp_path):
    (tmp_path / 'digits_query.csv').write_bytes((digits / 'digits_query.csv').read_bytes())
    gallery = digits / 'digits_test.csv'
    run = train(digits, tmp_path / 'root', '--eval_query', digits / 'digits_query.csv', tmp_path / 'digits_query.csv',
                '--eval_gallery', gallery, gallery)
    ended_in_one_sentence(run, 'called digits_query')


def test_each_set_has_its_own_excluder(digits):
    args = parsed(*VALIDATE, '--image_root', str(digits), '--eval_query', str(digits / 'digits_query.csv'),
                  str(digits / 'digits_test.csv'), '--eval_gallery', *[str(digits / 'digits_test.csv')] * 2)
    everything = 'regex:(?P<pid>)(?P<cid>)'
    for names, first_fails in ((['diagonal', everything], False), ([everything, 'diagonal'], True)):
        args.eval_excluder = names
        with pytest.raises(InputError, match=f'No query of .*{"query" if first_fails else "test"}.csv has a match'):
            validation.Validation(args)


def test_an_interrupted_validation_is_given_up_and_due_again(run, tmp_path, monkeypatch):
    few_units(monkeypatch.setattr)
    args, _ = arguments.load(str(run))
    args.experiment_root = str(tmp_path)
    validator = validation.Validation(args)
    weights = model.named_variables(model.build_for(args))
    validator.build(weights, tf.distribute.get_strategy())
    assert validator.evaluate(4, weights, argparse.Namespace(requested='SIGINT')) is None
    assert [step for step in range(9) if validator.is_due(step)] == [4, 8]

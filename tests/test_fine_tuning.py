"""Fine-tuning: optimizers, a rate per stage, averaged weights, recomputed activations; and their combination, resumed."""
import json
import re
import shutil

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from _runs import Run, make_people, run_results, train_arguments
from nets import _resnet
from objectives.xent import Objective
from tripletreid import plugins
from tripletreid.dataset import load_dataset
from tripletreid.embeddings.differences import difference
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints, flag_checks, resumption, train_flags
from tripletreid.modeling import inference, inspect_checkpoint, model, pretrained, recompute
from tripletreid.training import loss_scale, optimizer
from tripletreid.training.forward import with_frozen_body
from tripletreid.training.weight_average import WeightAverage

TRAIN = ['--experiment_root', 'root', '--train_set', 'a.csv', '--image_root', '.']


def parsed(*flags):
    return train_flags.make_parser().parse_args([*TRAIN, *flags])


# --- Optimizers -------------------------------------------------------------------------------------------------------

START = [1.0, -2.0, 0.5]
GRADIENTS, RATES = [[0.1, -0.3, 2.0], [0.4, 0.2, -1.0], [-0.2, 0.5, 0.25]], [0.1, 0.1, 0.01]
# Results of PyTorch 2.13 in double precision, with a weight decay of 0.05 and, for SGD, a momentum of 0.8.
PYTORCH_RESULTS = {
    'sgd': [0.9250569625, -1.9404869, 0.22631649375],
    'nesterov': [0.8818092613, -1.9269340968, 0.17600292755],
    'adam': [0.8034176094, -1.8560520324, 0.3692229870],
    'adamw': [0.7983253263, -1.8696948110, 0.3659379107],
    'adamw without decay': [0.8082013700, -1.8900778600, 0.3706098501],
    'adamw, half the rate': [0.8990067069, -1.9346932021, 0.4328244722],
}


@pytest.mark.parametrize('expected, flags, name, factor', [
    ('sgd', ['--optimizer', 'sgd', '--momentum', '0.8'], 'conv1/weights', 1),
    ('sgd', ['--optimizer', 'sgd', '--momentum', '0.8'], 'conv1/biases', 1),
    ('nesterov', ['--optimizer', 'sgd', '--momentum', '0.8', '--nesterov'], 'conv1/weights', 1),
    ('adam', [], 'conv1/biases', 1),
    ('adamw', ['--optimizer', 'adamw'], 'conv1/weights', 1),
    ('adamw', ['--optimizer', 'adamw'], 'Conv2d_1_depthwise/depthwise_weights', 1),
    ('adamw without decay', ['--optimizer', 'adamw'], 'conv1/biases', 1),
    ('adamw, half the rate', ['--optimizer', 'adamw'], 'conv1/weights', 0.5),
])
def test_optimizers_make_the_steps_of_pytorch(expected, flags, name, factor):
    variable = keras.Variable(START, dtype='float32')
    args = parsed('--weight_decay', '0.05', '--head_learning_rate_factor', str(factor), *flags)
    chosen = optimizer.build_optimizer(args, {name: variable}, body_names=[])
    for gradient, rate in zip(GRADIENTS, RATES):
        chosen.apply({name: tf.constant(gradient)}, tf.constant(rate))
    np.testing.assert_allclose(variable.numpy(), PYTORCH_RESULTS[expected], rtol=2e-6)


def test_momentum_in_a_loop():
    random = np.random.default_rng(0)
    variables = {name: keras.Variable(np.ones(4), dtype='float32') for name in ('a', 'b')}
    sgd = optimizer.Momentum(variables, rate_factors={'a': 0.25})
    assert set(sgd.variables) == {'a/Momentum', 'b/Momentum'}
    value, momentum = np.ones(4), np.zeros(4)
    for step in range(5):
        gradient = random.normal(size=4)
        sgd.apply({'a': tf.constant(gradient, tf.float32)}, tf.constant(0.1 / (step + 1)))
        momentum = 0.9 * momentum + gradient
        value = value - 0.25 * 0.1 / (step + 1) * momentum
    np.testing.assert_allclose(variables['a'].numpy(), value, rtol=1e-5)
    np.testing.assert_array_equal(variables['b'].numpy(), 1)


@pytest.mark.parametrize('flags, part', [
    (['--momentum', '0.9'], '--optimizer sgd'),
    (['--optimizer', 'adamw', '--weight_decay', '0.1', '--nesterov'], '--optimizer sgd'),
    (['--optimizer', 'sgd', '--nesterov', '--momentum', '0'], '--momentum 0'),
    (['--optimizer', 'sgd', '--decay_beta1', '0.5'], '--decay_beta1'),
    (['--optimizer', 'adamw'], '--weight_decay'),
    (['--optimizer', 'lion'], "'lion'"),
    (['--optimizer', 'sgd', '--momentum', '1.5'], 'from 0 to 1'),
    (['--layer_decay', '1'], 'between 0 and 1'),
    (['--layer_decay', '0'], 'between 0 and 1'),
    (['--ema', '1'], 'between 0 and 1'),
    (['--ema', 'nan'], 'between 0 and 1'),
    (['--head_learning_rate_factor', '0'], 'above 0'),
    (['--layer_decay', '0.5', '--freeze_body_iterations', '25000'], 'frozen'),
    (['--recompute', '--freeze_body_iterations', '25000'], 'frozen'),
])
def test_flags_that_do_not_fit(flags, part, capsys):
    parser = train_flags.make_parser()
    with pytest.raises(SystemExit) as exit_of:
        flag_checks.check(parser.parse_args([*TRAIN, *flags]), parser)
    assert exit_of.value.code == 2 and part in capsys.readouterr().err


@pytest.mark.parametrize('iterations, is_noticed', [(1000, True), (20000, False)])
def test_an_average_over_too_few_steps_is_noticed(iterations, is_noticed):
    notices = flag_checks.notices(parsed('--ema', '0.9998', '--train_iterations', str(iterations), '--decay_start_iteration',
                                       '-1'))
    assert bool(notices) == is_noticed and (not is_noticed or '82%' in notices[0])


@pytest.mark.parametrize('flags', (['--optimizer', 'sgd'], ['--ema', '0.9'], ['--memory', '9'],
                                   ['--center_weight', '0.1'], ['--sampler', 'hard_identity'],
                                   ['--classifier', 'arcface']))
def test_a_run_of_before_is_not_resumed_with_what_its_checkpoints_lack(flags, tmp_path):
    (tmp_path / 'args.json').write_text('{"train_set": "a.csv"}')
    args = parsed('--experiment_root', str(tmp_path), '--resume', *flags)
    with pytest.raises(InputError, match=f'without {flags[0]}'):
        resumption.merge_with_stored(args, {flags[0].strip('-')})


# --- A rate per stage -------------------------------------------------------------------------------------------------

def test_the_rate_falls_from_stage_to_stage():
    names = ['resnet_v1_50/conv1/weights', 'resnet_v1_50/block1/unit_2/bottleneck_v1/conv1/weights',
             'resnet_v1_50/block4/unit_1/bottleneck_v1/conv1/BatchNorm/beta', 'gem/p', 'emb/weights', 'classifier/weights']
    args = parsed('--layer_decay', '0.5', '--head_learning_rate_factor', '10')
    factors = optimizer.rate_factors(args, names, names[:4], plugins.load('nets', args.model_name).STAGES)
    assert list(factors.values()) == [0.5 ** 5, 0.5 ** 4, 0.5, 1, 10, 10]
    unchanged = optimizer.rate_factors(parsed(), names, names[:4], None)
    assert set(unchanged.values()) == {1}
    with pytest.raises(InputError, match='--layer_decay: the net resnet_v1_50 does not list .*STAGES in nets/'):
        optimizer.rate_factors(args, names, names[:4], None)


# --- Recomputed activations -------------------------------------------------------------------------------------------

class Noise(keras.layers.Layer):
    """Adds one random number to everything; another one at each call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, inputs):
        return inputs * (1 + keras.random.uniform((), seed=self.seeds))


def random_net():
    """Return a net of six layers with noise and batch norm each, which strides before the norm."""
    images = keras.Input((32, 16, 3), name='images')
    net = images / 255
    for number in range(6):
        net = _resnet.conv_bn(net, f'noisy.conv{number}', 8, 3, 2 if number == 2 else 1)
        net = Noise(name=f'noisy.noise{number}')(net)
    net = keras.layers.GlobalAveragePooling2D()(net)
    network = keras.Model(images, {'emb': keras.layers.Dense(2, name='emb')(net)})
    network.body = keras.Model(images, net, name='noisy')
    return network


@pytest.mark.parametrize('head', ['fc1024', 'direct', 'bnneck'])
def test_recomputing_with_a_classifier_on_a_small_net(head):
    """The last place where one tensor is all that continues is the embedding itself, which is no place to cut."""
    args = parsed('--head_name', head)
    network = model.with_endpoints(model.build('conv4', head, 16, (28, 28, 3)), [Objective(args, 5).endpoints])
    forward = recompute.recomputing(network, ['emb', 'emb_raw', 'metric_emb', 'logits'])
    images = tf.random.stateless_uniform([4, 28, 28, 3], (1, 2), 0, 255)
    expected, outputs = network(images, training=True), forward(images)
    assert outputs.keys() == expected.keys() & {'emb', 'emb_raw', 'metric_emb', 'logits'}
    for name, output in outputs.items():
        np.testing.assert_allclose(output, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('net, head, dims', [('conv4', 'bnneck', 16), ('mnist', 'features', 128), ('conv4', 'fc1024', 8)])
def test_a_frozen_body_computes_as_for_embedding(net, head, dims):
    network = model.build(net, head, dims, (28, 28, 3))
    images = tf.random.stateless_uniform([4, 28, 28, 3], (1, 2), 0, 255)
    before = {name: variable.numpy() for name, variable in model.named_variables(network.body).items()}
    outputs = with_frozen_body(network, ['emb', 'metric_emb'])(images)
    assert all(np.array_equal(variable, before[name]) for name, variable in model.named_variables(network.body).items())
    network.body.trainable = False  # Keras's way to the same.
    expected = network(images, training=True)
    assert outputs.keys() == {'emb', 'metric_emb'} & expected.keys()
    for name, output in outputs.items():
        np.testing.assert_allclose(output, expected[name], rtol=1e-4, atol=1e-5)


def test_recomputed_gradients_are_the_same():
    images = tf.random.stateless_uniform((4, 32, 16, 3), (1, 2), 0, 255)
    found = []
    for recomputes in (False, True):
        keras.utils.set_random_seed(0)
        network = random_net()
        forward = recompute.recomputing(network, ('emb',)) if recomputes else network

        @tf.function(autograph=False)
        def step():
            with tf.GradientTape() as tape:
                emb = forward(images, training=True)['emb']
            return emb, *tape.gradient(emb, [variable.value for variable in network.trainable_variables])

        computed = [value.numpy() for _ in range(2) for value in step()]
        moved = {name: variable.numpy() for name, variable in model.named_variables(network).items()}
        operations = [node.type for node in step.get_concrete_function().graph.get_operations()]
        found.append((computed, moved, operations.count('Conv2D')))
    (plain, state, convolutions), (again, state_again, more) = found
    assert len(plain) == len(again) and state.keys() == state_again.keys()
    for value, value_again in zip(plain, again):
        np.testing.assert_allclose(value_again, value, rtol=1e-4, atol=1e-5 * abs(value).max())
    for name, value in state.items():
        np.testing.assert_allclose(state_again[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert abs(plain[0] - plain[len(plain) // 2]).max() > 0.1 * abs(plain[0]).max(), 'the noise changed nothing'
    assert convolutions == 6 and more > 9


def test_a_net_that_cannot_be_cut():
    with pytest.raises(InputError, match='--recompute: the net flat has no place'):
        images = keras.Input((8, 8, 3))
        network = keras.Model(images, {'emb': keras.layers.Flatten()(images)})
        network.body = keras.Model(images, network.output, name='flat')
        recompute.recomputing(network, ('emb',))


def test_recomputing_keeps_a_small_part():
    """It keeps the outputs of ResNet-50's units, a small part of the activations."""
    network = model.without_values(model.build, 'resnet_v1_50', 'direct', 4, (256, 128, 3))
    shapes = [tuple(cut.shape[1:]) for cut in recompute.cuts_of([network.output['emb']])]
    assert shapes == [*2 * [(64, 32, 256)], (32, 16, 256), *3 * [(32, 16, 512)], (16, 8, 512), *5 * [(16, 8, 1024)],
                      (8, 4, 1024), *3 * [(8, 4, 2048)]]


# --- The average ------------------------------------------------------------------------------------------------------

def test_a_skipped_step_does_not_change_the_average():
    variable = keras.Variable([1.0, 2.0], dtype='float32')
    average = WeightAverage({'a': variable}, 0.75)
    average.begin()
    variable.assign([3.0, 2.0])
    scale = loss_scale.LossScale('float16')
    scale.apply(tf.constant(float('inf')), average.update)
    assert average.variables['a/ExponentialMovingAverage'].numpy().tolist() == [1, 2]
    scale.apply(tf.constant(1.0), average.update)
    assert average.variables['a/ExponentialMovingAverage'].numpy().tolist() == [1.5, 2]


# --- All of it together -----------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp('people'))


@pytest.fixture(scope='module')
def run(people, tmp_path_factory):
    """The experiment root of six iterations, each with a checkpoint; the first two train the head alone."""
    root, csv = tmp_path_factory.mktemp('runs') / 'whole', people / 'people.csv'
    run = Run('train.py', *train_arguments(people, root, 6, 1), '--head_name', 'fc1024', '--optimizer', 'sgd', '--nesterov',
              '--weight_decay', 0.01, '--learning_rate', 0.01, '--layer_decay', 0.5, '--head_learning_rate_factor', 4,
              '--ema', 0.6, '--recompute', '--freeze_body_iterations', 2, '--eval_query', csv, '--eval_gallery', csv,
              '--eval_excluder', 'diagonal', '--eval_frequency', 3)
    assert run.wait() == 0, run.output
    assert 'Learning-rate multiplier 4: fully_connected/weights' in run.output
    assert 'Learning-rate multiplier 0.0625: mnist/conv1/weights' in run.output
    return root


def readers_of(root):
    return [checkpoints.open_reader(str(root / f'checkpoint-{step}')) for step in range(7)]


def test_first_steps_have_rates_of_their_own(run):
    """After the first step of a variable its momentum is its gradient, and Nesterov's step is 1 + 0.9 times it."""
    factors = {'mnist/conv1/weights': 1 / 16, 'mnist/conv2/weights': 1 / 8, 'mnist/fc3/weights': 1 / 4,
               'mnist/fc4/weights': 1 / 2, 'fully_connected/weights': 4, 'emb/weights': 4}
    readers = readers_of(run)
    for name, factor in factors.items():
        step = 2 if name.startswith('mnist') else 0
        before, after = (reader.get_tensor(name) for reader in readers[step:step + 2])
        gradient = readers[step + 1].get_tensor(f'{name}/Momentum')
        assert (readers[0].get_tensor(name) == before).all() and abs(gradient).max() > 1e-3
        np.testing.assert_allclose(after - before, -0.01 * factor * 1.9 * gradient, rtol=1e-3, atol=1e-7, err_msg=name)


def test_the_average_in_checkpoints(run):
    readers = readers_of(run)
    held = readers[0].get_variable_to_shape_map()
    names = [name.removesuffix('/ExponentialMovingAverage') for name in held if name.endswith('ExponentialMovingAverage')]
    assert {'mnist/conv1/weights', 'fully_connected/BatchNorm/moving_mean', 'emb/biases'} <= set(names)
    assert {name.removeprefix('emb/weights/') for name in held if name.startswith('emb/weights/')} == {
        'Momentum', 'ExponentialMovingAverage'}
    for name in names:
        average = readers[0].get_tensor(name)
        for reader in readers:
            average = 0.6 * average + 0.4 * reader.get_tensor(name)
            np.testing.assert_allclose(reader.get_tensor(f'{name}/ExponentialMovingAverage'), average, rtol=1e-5,
                                       atol=1e-7, err_msg=name)


def embs_of(network, people):
    paths = [str(people / fid) for fid in load_dataset(people / 'people.csv').fids]
    return np.concatenate([embs[0] for embs in inference.embed_files(network, paths)]).astype(np.float64)


def mean_ap(network, people):
    dataset, embs = load_dataset(people / 'people.csv'), embs_of(network, people)
    dists = np.linalg.norm(embs[:, None] - embs, axis=2)
    same, others = dataset.pids[:, None] == dataset.pids, ~np.eye(len(embs), dtype=bool)
    return np.mean([average_precision_score(match[other], -row[other]) for match, other, row in zip(same, others, dists)])


def test_the_average_is_what_validates_and_embeds(run, people, tmp_path):
    noted = json.loads((run / 'checkpoint-best').read_text())['validations'][-1]
    averaged, _ = inference.from_experiment(str(run))
    raw, path = inference.from_experiment(str(run), weights='raw')
    reader = checkpoints.open_reader(path)
    for network, suffix in ((averaged, '/ExponentialMovingAverage'), (raw, '')):
        for name, variable in model.named_variables(network).items():
            np.testing.assert_array_equal(variable, reader.get_tensor(name + suffix), err_msg=name)
    assert noted['step'] == 6 and noted['mAP'] == pytest.approx(mean_ap(averaged, people), abs=1e-6)
    embedding = Run('embed.py', '--experiment_root', run, '--dataset', people / 'people.csv', '--filename',
                    tmp_path / 'raw.h5', '--weights', 'raw')
    assert embedding.wait() == 0, embedding.output
    with h5py.File(tmp_path / 'raw.h5') as file:
        np.testing.assert_allclose(file['emb'][:], embs_of(raw, people), rtol=1e-5, atol=1e-5)
    assert abs(embs_of(averaged, people) - embs_of(raw, people)).max() > 1e-3


def test_resuming_gives_the_very_run(run, tmp_path):
    resumed = tmp_path / 'resumed'
    shutil.copytree(run, resumed)
    for step in (4, 5, 6):
        (resumed / f'checkpoint-{step}.index').unlink()
    (resumed / 'checkpoint').unlink()
    again = Run('train.py', '--experiment_root', resumed, '--resume', '--optimizer', 'adam')
    assert again.wait() == 0 and re.search('Resuming from .*checkpoint-3\\.', again.output), again.output
    assert "optimizer was given as 'adam'" in again.output
    expected, found = run_results(run, 6), run_results(resumed, 6)
    for name in expected:
        assert found[name] == expected[name], name


def test_what_a_checkpoint_of_it_is_good_for(run, monkeypatch):
    monkeypatch.setattr(plugins, 'choices', {'nets': ['mnist'], 'heads': ['direct', 'fc1024']}.get)
    lines = inspect_checkpoint.describe(str(run))
    assert lines[-3:] == ['optimizer: SGD with the momentum of 13 variables',
                          'average over the steps (--ema): of 15 variables', 'training identities: 6, with their names']
    network = model.build('mnist', 'direct', 4, (28, 28, 3))
    assert pretrained.load_body(network, str(run)) == [
        'emb/biases', 'emb/weights', *sorted(f'fully_connected/{name}' for name in (
            'weights', 'BatchNorm/beta', 'BatchNorm/gamma', 'BatchNorm/moving_mean', 'BatchNorm/moving_variance'))]
    reader = checkpoints.open_reader(checkpoints.find(str(run)))
    np.testing.assert_array_equal(network.body.get_layer('mnist.conv1').kernel, reader.get_tensor('mnist/conv1/weights'))


def test_raw_weights_of_a_checkpoint_without_others(tmp_path):
    variables = model.named_variables(model.build('mnist', 'direct', 4, (28, 28, 3)))
    path = checkpoints.save(str(tmp_path), 0, variables)
    checkpoints.load_weights(path, variables)
    with pytest.raises(InputError, match='--weights raw has no effect: the checkpoint .*checkpoint-0'):
        checkpoints.load_weights(path, variables, 'raw')


def test_a_gallery_of_other_weights_is_recognised():
    ema, raw, old = ({'head_name': 'direct', **more} for more in ({'weights': None}, {'weights': 'raw'}, {}))
    assert difference(ema, raw) == 'other weights of the checkpoint'
    assert difference(old, raw) == 'other weights of the checkpoint' and difference(old, ema) is None

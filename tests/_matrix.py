"""Training in every combination of precision, family of net and loss, three steps of a small net each, on given devices."""
import contextlib
import itertools
import types
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import train
from _runs import identities_of
from nets import _applications, _osnet, _pooling, _resnet, _torch_resnet, _vit
from tripletreid import plugins
from tripletreid.experiment import train_flags
from tripletreid.modeling import model
from tripletreid.training import train_state
from tripletreid.training.schedule import Schedule

PRECISIONS = ('none', 'bfloat16', 'float16')
FAMILIES = ('slim', 'keras', 'PyTorch', 'without batch norm', 'transformer')
LOSSES = ('batch_hard', 'lifted', 'cross-entropy')
STEPS, P, K, SIZE = 3, 4, 2, (16, 8)


def combinations():
    """All of (precision, family, loss)."""
    return list(itertools.product(PRECISIONS, FAMILIES, LOSSES))


def pairs(devices):
    """Fewer: each precision with each family and with each loss, each family with each loss; of all these on several
    devices each family, each precision with and without batch norm, and each loss without.

    A loss is computed in float32 of embeddings in float32, in any precision. The additions of several devices, batch
    norm's statistics and gradients of all replicas, is the same code in each precision; only the scale of the losses of
    float16, which all replicas share, and the dtype of batch norm make a difference.
    """
    def one_loss(family):
        return LOSSES[FAMILIES.index(family) % len(LOSSES)]

    return [(precision, family, loss) for precision, family, loss in combinations()
            if loss == one_loss(family) and (devices == 1 or precision == 'none' or family in ('slim', 'without batch norm'))
            or precision == 'none' and (devices == 1 or family == 'without batch norm')]


def train_all(strategy, chosen):
    """Train combinations. Returns {combination: result of `three_steps`}."""
    found = {combination: three_steps(strategy, *combination) for combination in chosen}
    model.set_precision('none')
    return found


def three_steps(strategy, precision, family, loss, jit_compile=False, more_flags=()):
    """Losses of all images at each step, float32 [STEPS, P·K], and the state after it, {name: array}, as stored."""
    flags = ['--experiment_root', 'nowhere', '--train_set', 'none', '--image_root', 'none', '--head_name',
             'fc1024' if family == 'PyTorch' else 'direct', '--embedding_dim', '8', '--batch_p', str(P),
             '--batch_k', str(K), '--net_input_height', str(SIZE[0]), '--net_input_width', str(SIZE[1]),
             '--mixed_precision', precision, '--learning_rate', '1e-3', '--deterministic']
    flags += ['--loss', 'none', '--xent_weight', '1'] if loss == 'cross-entropy' else ['--loss', loss, '--margin', '0.3']
    args = train_flags.make_parser().parse_args([*flags, *['--jit_compile'] * jit_compile, *more_flags])
    with _small_nets():
        args.model_name = {'slim': 'small_slim', 'keras': 'small_keras', 'PyTorch': 'small_torch',
                           'transformer': 'small_vit'}.get(family, 'mnist')
        args.drop_path = 0.5 if family == 'transformer' else None
        state = train_state.create(args, identities_of(P), strategy)
    if state.average:
        state.average.begin()
    step, outputs = train.make_train_step(args, state, strategy), []
    for number in range(STEPS):
        result = step(_batch(strategy, number), Schedule(tf.constant(1e-4), tf.constant(0.9)))
        if loss == 'cross-entropy':
            outputs.append(result['cross_entropy'].numpy()[None])
        else:
            outputs.append(result['losses'].numpy())
        assert state.loss_scale.skipped(result['gradient_norm'].numpy(), result['loss_scale'].numpy()) or np.isfinite(
            result['gradient_norm'].numpy()), (precision, family, loss)
    return np.stack(outputs), {name: value.numpy() for name, value in state.values().items() if value.dtype != tf.string}


def _batch(strategy, number):
    """A batch as `distribute.data` gives it: the images are dealt round the replicas."""
    random = np.random.default_rng(number)
    pids = np.repeat(np.arange(P, dtype=np.int32), K)
    images = (random.uniform(0, 100, (P * K, *SIZE, 3)) + 30 * pids[:, None, None, None]).astype(np.float32)
    replicas = strategy.num_replicas_in_sync

    def images_of_replica(context):
        own = range(context.replica_id_in_sync_group, P * K, replicas)
        return {'images': tf.constant(images[own]), 'pids': tf.constant(pids), 'rows': tf.range(P * K, dtype=tf.int64)}

    if replicas == 1:
        return images_of_replica(types.SimpleNamespace(replica_id_in_sync_group=0))
    return strategy.experimental_distribute_values_from_function(images_of_replica)


@contextlib.contextmanager
def _small_nets():
    """Inside of this block there are more nets: as TF-Slim's, Keras Applications' and PyTorch's, and a transformer."""
    nets = {'small_slim': types.SimpleNamespace(body=_slim_body, STAGES=('small/conv1/', 'small/unit_1/')),
            'small_keras': types.SimpleNamespace(body=_keras_body),
            'small_torch': types.SimpleNamespace(body=torch_body),
            'small_vit': types.SimpleNamespace(body=_transformer_body, STAGES=_vit.stages(12))}
    load = plugins.load

    def load_small(folder, name):
        return nets[name] if name in nets else load(folder, name)

    with mock.patch.object(plugins, 'load', load_small):
        yield


def _slim_body(input_shape):
    images = keras.Input(input_shape, name='images')
    net = _resnet.conv_bn(images - keras.ops.array(_resnet.RGB_MEAN), 'small.conv1', 8, 7, 2)
    net = _resnet.bottleneck(net, 'small.unit_1', 16, (1, 2))
    return keras.Model(images, {'model_output': _pooling.pooled(net, 'avg')}, name='small')


def _keras_body(input_shape):
    images = keras.Input(input_shape, name='images')
    net = _applications.backbone(_small_application, _applications.as_torch(images))
    return keras.Model(images, {'features': net.output, 'model_output': _pooling.pooled(net.output, 'avg')}, name='small')


def torch_body(input_shape):
    """Half an instance norm, as in an IBN ResNet, and streams with a gate, as in an OSNet."""
    images = keras.Input(input_shape, name='images')
    net = _torch_resnet.bottleneck(images / 255, 'small.unit', 32, 2, _torch_resnet.half_instance_norm)
    net = _osnet.gated([_osnet.light_conv(net, 'small.conv2a'), net], 'small.gate')
    return keras.Model(images, {'model_output': _pooling.pooled(net, 'avg')}, name='small')


def _transformer_body(input_shape, drop_path):
    return _vit.Architecture('small', patch=4, width=16, heads=2, depth=2).body(input_shape, drop_path=drop_path)


def _small_application(include_top, weights, input_tensor, input_shape):
    """With the signature and the layers of a net of Keras Applications."""
    net = input_tensor
    for number in (1, 2):
        net = keras.layers.Conv2D(8, 3, 2, use_bias=False, name=f'conv{number}')(net)
        net = keras.layers.BatchNormalization(epsilon=1.001e-5, name=f'bn{number}')(net)
        net = keras.layers.Activation('relu', name=f'relu{number}')(net)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), net)

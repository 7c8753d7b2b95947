"""Batch norm against plain NumPy; nets and heads compared with the papers and the original."""
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from _few_units import few_units
from _runs import FORKS, start_fork_server
from heads import _dense
from nets import _applications
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.modeling import model
from tripletreid.modeling.batch_norm import BatchNorm


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(3, 2, shape).astype(np.float32)


def randomized(layer, shape):
    """The layer, built, and gamma, beta, moving_mean and moving_variance that it got."""
    layer.build(shape)
    random = np.random.default_rng(7)
    values = [random.uniform(0.5, 2, shape[-1]).astype(np.float32) for _ in range(4)]
    layer.set_weights(values)
    return layer, values


@pytest.mark.parametrize('in_graph', [False, True])
@pytest.mark.parametrize('shape', [(6, 5, 3, 4), (6, 4), (1, 2, 1, 4)])
def test_batch_norm(shape, in_graph):
    layer, (gamma, beta, moving_mean, moving_variance) = randomized(BatchNorm(epsilon=1e-3), shape)
    call = tf.function(layer) if in_graph else layer
    inputs = normal(*shape)
    outputs = call(tf.constant(inputs), training=False)
    np.testing.assert_allclose(
        outputs, (inputs - moving_mean) / np.sqrt(moving_variance + 1e-3) * gamma + beta, rtol=1e-4, atol=1e-5)

    outputs = call(tf.constant(inputs), training=True)
    rows = inputs.reshape(-1, 4)
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    np.testing.assert_allclose(outputs, (inputs - mean) / np.sqrt(variance + 1e-3) * gamma + beta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.9 * moving_mean + 0.1 * mean, rtol=1e-5)
    unbiased = rows.var(axis=0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * moving_variance + 0.1 * unbiased, rtol=1e-5)


def test_batch_norm_has_the_gradient_of_kerass():
    inputs = tf.constant(normal(6, 5, 3, 4))
    weights = tf.constant(normal(6, 5, 3, 4, seed=1))
    gradients = []
    for layer in (BatchNorm(epsilon=1e-3), keras.layers.BatchNormalization(epsilon=1e-3)):
        layer, _ = randomized(layer, inputs.shape)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(weights * layer(inputs, training=True))
        gradients.append(tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value]))
    for ours, keras_own in zip(*gradients):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('frozen', ['layer', 'model'])
def test_frozen_batch_norm(frozen):
    inputs = keras.Input((4,))
    layer = BatchNorm()
    network = keras.Model(inputs, layer(inputs))
    before = [variable.numpy() for variable in network.variables]
    (layer if frozen == 'layer' else network).trainable = False
    batch = normal(5, 4)
    np.testing.assert_array_equal(network(batch, training=True), network(batch, training=False))
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_batch_norm_in_mixed_precision(dtype):
    inputs = normal(64, 4)
    exact, (_, _, moving_mean, _) = randomized(BatchNorm(), inputs.shape)
    layer, _ = randomized(BatchNorm(dtype=f'mixed_{dtype}'), inputs.shape)
    outputs = layer(tf.constant(inputs), training=True)
    assert outputs.dtype == dtype
    assert {variable.dtype for variable in layer.variables} == {'float32'}
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), exact(inputs, training=True), atol=0.05)
    # The statistics are exactly the rounded inputs' ones.
    rounded = tf.cast(tf.cast(inputs, dtype), tf.float32).numpy()
    np.testing.assert_allclose(layer.moving_mean, 0.9 * moving_mean + 0.1 * rounded.mean(axis=0), rtol=1e-5)


def _average_over_replicas():
    cpu, = tf.config.list_physical_devices('CPU')
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
    with strategy.scope():
        layer = BatchNorm()
        layer.build((None, 1))
    inputs = np.arange(8, dtype=np.float32).reshape(2, 4, 1) ** 2
    replica_inputs = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(inputs[context.replica_id_in_sync_group]))
    tf.function(lambda: strategy.run(lambda batch: layer(batch, training=True), (replica_inputs,)), autograph=False)()
    np.testing.assert_allclose(layer.moving_mean.numpy(), [0.1 * inputs.mean()], rtol=1e-5)
    variances = inputs.var(axis=1, ddof=1)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [0.9 + 0.1 * variances.mean()], rtol=1e-5)


def test_batch_norm_in_replicas():
    """In a process of its own, where TensorFlow has not computed anything yet: only there the CPU can be divided."""
    start_fork_server()
    process = FORKS.Process(target=_average_over_replicas, daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == 0, 'not equal' if process.exitcode else 'not done within 120 s'


def body_without_values(name, *args, **options):
    """The body of a net as far as its structure goes, in a tenth of the time."""
    return model.without_values(plugins.load('nets', name).body, *args, **options)


def test_without_values_nothing_gets_any_later():
    """Keras would assign values after the next scope of its kind, and most nets enter many while they are built."""
    valued = []

    def initial(shape, dtype=None):
        valued.append(shape)
        return tf.zeros(shape, dtype)

    def build():
        inputs = keras.Input((3,))
        return keras.Model(inputs, keras.layers.Dense(2, kernel_initializer=initial, name='dense')(inputs))

    network = model.without_values(build)
    with keras.StatelessScope():
        pass
    assert valued == [] and [variable.shape for variable in network.variables] == [(3, 2), (2,)]
    build()
    assert valued == [(3, 2)]


def strided_convolutions(body):
    return {layer.name for layer in body.layers if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)}


@pytest.mark.parametrize('last_stride, last_size', [(2, (3, 2)), (1, (5, 3))])
def test_resnet_strides(last_stride, last_size):
    body = body_without_values('resnet_v1_50', (65, 41, 3), last_stride=last_stride)
    sizes = [body.output[f'block{block}'].shape[1:3] for block in (1, 2, 3, 4)]
    # 65×41 is 33×21 after conv1 and 17×11 after the pooling; each block except the last strides in its last unit.
    assert sizes == [(9, 6), (5, 3), last_size, last_size]
    units = ['block1.unit_3', 'block2.unit_4', *(['block3.unit_6'] if last_stride == 2 else [])]
    inside = {f'resnet_v1_50.{unit}.bottleneck_v1.conv2' for unit in units}
    assert strided_convolutions(body) == {'resnet_v1_50.conv1', *inside}


def test_trinet_strides():
    body = body_without_values('trinet', (256, 128, 3))
    assert [body.output[f'block{block}'].shape[1:3] for block in (1, 2, 3, 4)] == [(64, 32), (32, 16), (16, 8), (8, 4)]
    inside = {f'trinet.block{block}.unit_1.{name}' for block in (2, 3, 4) for name in ('conv1', 'shortcut')}
    assert strided_convolutions(body) == {'trinet.conv1', *inside}


def test_lunet_has_the_papers_layers():
    network = model.build('lunet', 'lunet', 128, (128, 64, 3))
    assert network.body.output['block6'].shape == (None, 4, 2, 128)
    kernels = [variable.shape for name, variable in model.named_variables(network).items() if name.endswith('weights')]
    # 7×7×128; three blocks of 128, one to 256; two and two of 256, one to 512; two of 512; 3×3×512, 3×3×128; 512, 128.
    first, last = 7 * 7 * 3 * 128, 9 * 512 * 512 + 9 * 512 * 128
    blocks = 3 * 17_408 + (61_440 + 128 * 256) + 4 * 69_632 + (245_760 + 256 * 512) + 2 * 278_528
    assert sum(map(math.prod, kernels)) == first + blocks + last + 4 * 2 * 128 * 512 + 512 * 128
    assert len(kernels) == 1 + 3 * 11 + 2 + 2 + 2
    with pytest.raises(InputError, match='avgpool'):
        model.build('lunet', 'lunet', 128, (None, None, 3))


def test_initial_weights():
    variables = model.named_variables(model.build('resnet_v1_50', 'fc1024', 64, (64, 32, 3)))
    for unit in (1, 2):
        weights = variables[f'resnet_v1_50/block4/unit_{unit}/bottleneck_v1/conv2/weights'].numpy()
        assert np.std(weights) == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.02)
        assert np.abs(weights).max() < 2.3 * np.std(weights)  # Truncated.
    assert not np.array_equal(*(variables[f'resnet_v1_50/block4/unit_{unit}/bottleneck_v1/conv2/weights']
                                for unit in (2, 3)))
    hidden = variables['fully_connected/weights'].numpy()
    assert np.abs(hidden).max() == pytest.approx(math.sqrt(6 / (2048 + 1024)), rel=1e-3)
    emb = variables['emb/weights'].numpy()
    np.testing.assert_allclose(emb.T @ emb, np.eye(64), atol=1e-5)
    variables = model.named_variables(model.build('mobilenet_v1_1_224', 'direct', 64, (64, 32, 3)))
    for name in ('Conv2d_9_depthwise/depthwise_weights', 'Conv2d_9_pointwise/weights'):
        weights = variables[f'MobilenetV1/{name}'].numpy()
        assert np.abs(weights).max() == pytest.approx(0.18, rel=0.03)
        assert np.std(weights) == pytest.approx(0.09 * 0.88, rel=0.03)


def test_normalized_embeddings_have_a_gradient_at_zero():
    emb = tf.Variable([[3.0, 4.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        normalized = _dense.normalize(emb)
        loss = tf.reduce_sum(normalized)
    np.testing.assert_allclose(normalized, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.isfinite(tape.gradient(loss, emb)).all()


@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
def test_mixed_precision(policy):
    images = np.random.default_rng(0).uniform(0, 255, (8, 64, 32, 3)).astype(np.float32)
    keras.utils.set_random_seed(0)
    exact = model.build('mobilenet_v1_1_224', 'fc1024', 16, (64, 32, 3))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        mixed = model.build('mobilenet_v1_1_224', 'fc1024', 16, (64, 32, 3))
    finally:
        keras.config.set_dtype_policy(before)
    for ours, value in zip(mixed.variables, exact.variables):
        assert ours.dtype == 'float32'
        ours.assign(value)
    outputs = mixed(images, training=True)
    assert outputs['Conv2d_13_pointwise'].dtype == policy.removeprefix('mixed_')
    assert outputs['model_output'].dtype == outputs['emb'].dtype == 'float32'
    # Rounding grows from layer to layer; that it is one and the same function is still plain.
    expected = exact(images, training=True)['emb']
    assert np.corrcoef(np.ravel(outputs['emb']), np.ravel(expected))[0, 1] > 0.8


@pytest.mark.parametrize('name, application', [('resnet50', 'ResNet50'), ('densenet121', 'DenseNet121')])
def test_nets_of_keras_have_this_batch_norm_and_the_numbers_of_keras(name, application, monkeypatch):
    """Under Keras's names; before training the statistics describe no images, so both nets get some."""
    few_units(monkeypatch.setattr)
    body = model.build(name, 'direct', 4, (32, 32, 3)).body
    kinds = {type(layer) for layer in body.layers}
    assert BatchNorm in kinds and keras.layers.BatchNormalization not in kinds
    assert {layer.momentum for layer in body.layers if isinstance(layer, BatchNorm)} == {0.9}
    original = getattr(keras.applications, application)(include_top=False, weights=None, input_shape=(32, 32, 3))
    own = {variable.path: variable for variable in body.variables}
    for number, variable in enumerate(original.variables):
        random = np.random.default_rng(number)
        is_scale = variable.path.endswith(('gamma', 'moving_variance'))
        variable.assign(random.uniform(0.9, 1.1, variable.shape) if is_scale else random.normal(0, 0.02, variable.shape))
        own.pop(variable.path).assign(variable)
    assert not own, 'no variable that Keras does not have'
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    prepared = (_applications.as_caffe if name == 'resnet50' else _applications.as_torch)(images)
    expected = original(prepared, training=False)
    np.testing.assert_allclose(keras.Model(body.input, body.output['features'])(images, training=False), expected,
                               rtol=1e-4, atol=1e-4 * abs(expected.numpy()).max())

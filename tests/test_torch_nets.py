"""OSNet and PyTorch's ResNets against plain NumPy, from the same arrays laid out as they are published."""
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

import freeze
from _matrix import torch_body
from nets import _torch_resnet, _torch_weights
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.modeling import exports, model, pretrained, recompute, weight_files

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


# The layouts, {name: shape}.

def conv_shapes(name, inputs, outputs, size=1):
    return {f'{name}.weight': (outputs, inputs, size, size)}


def norm_shapes(name, channels):
    return {f'{name}.{kind}': (channels,) for kind in ('weight', 'bias', 'running_mean', 'running_var')} | {
        f'{name}.num_batches_tracked': ()}


def osnet_shapes(channels):
    """torchreid's, with the last dense layer and the classifier."""
    def conv_bn(name, inputs, outputs, size=1):
        return conv_shapes(f'{name}.conv', inputs, outputs, size) | norm_shapes(f'{name}.bn', outputs)

    shapes, before = conv_bn('conv1', 3, channels[0], 7), channels[0]
    for stage, width in zip((2, 3, 4), channels[1:]):
        for number in (0, 1):
            block, inside = f'conv{stage}.{number}', width // 4
            shapes |= conv_bn(f'{block}.conv1', before, inside) | conv_bn(f'{block}.conv3', inside, width)
            for name in ('a', 'b.0', 'b.1', 'c.0', 'c.1', 'c.2', 'd.0', 'd.1', 'd.2', 'd.3'):
                light = f'{block}.conv2{name}'
                shapes |= conv_shapes(f'{light}.conv1', inside, inside) | conv_shapes(f'{light}.conv2', 1, inside, 3)
                shapes |= norm_shapes(f'{light}.bn', inside)
            for name, ends in (('fc1', (inside, inside // 16)), ('fc2', (inside // 16, inside))):
                shapes |= conv_shapes(f'{block}.gate.{name}', *ends) | {f'{block}.gate.{name}.bias': ends[1:]}
            if number == 0:
                shapes |= conv_bn(f'{block}.downsample', before, width)
            before = width
        shapes |= conv_bn(f'conv{stage}.2.0', width, width) if stage < 4 else {}
    shapes |= conv_bn('conv5', width, width) | {'fc.0.weight': (8, width), 'fc.0.bias': (8,), **norm_shapes('fc.1', 8)}
    return shapes | {'classifier.weight': (5, 8), 'classifier.bias': (5,)}


def resnet_shapes(instance_norm, unit_counts):
    """Return the shapes of torchvision's ResNet, or of the IBN-Net authors' one, with the classifier."""
    shapes, before = conv_shapes('conv1', 3, 64, 7) | norm_shapes('bn1', 64), 64
    for stage, units in enumerate(unit_counts, start=1):
        inside = 32 * 2 ** stage
        for number in range(units):
            unit = f'layer{stage}.{number}'
            shapes |= conv_shapes(f'{unit}.conv1', before, inside) | conv_shapes(f'{unit}.conv2', inside, inside, 3)
            shapes |= conv_shapes(f'{unit}.conv3', inside, 4 * inside) | norm_shapes(f'{unit}.bn2', inside)
            shapes |= norm_shapes(f'{unit}.bn3', 4 * inside)
            if instance_norm and stage < 4:
                shapes |= {f'{unit}.bn1.IN.weight': (inside // 2,), f'{unit}.bn1.IN.bias': (inside // 2,)}
                shapes |= norm_shapes(f'{unit}.bn1.BN', inside // 2)
            else:
                shapes |= norm_shapes(f'{unit}.bn1', inside)
            if number == 0:
                shapes |= conv_shapes(f'{unit}.downsample.0', before, 4 * inside)
                shapes |= norm_shapes(f'{unit}.downsample.1', 4 * inside)
            before = 4 * inside
    return shapes | {'fc.weight': (5, before), 'fc.bias': (5,)}


def random_weights(shapes):
    random, weights = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape, np.float32)
        if len(shape) > 1:
            weights[name] = values * np.float32(np.prod(shape[1:]) ** -0.5)
        elif name.endswith('running_var'):
            weights[name] = np.float32(0.5) + abs(values)
        elif name.endswith('num_batches_tracked'):
            weights[name] = np.array(7)
        else:
            weights[name] = np.float32(name.endswith('weight')) + np.float32(0.2) * values
    return weights


# The forward pass: [B, C, H, W] float64, as in PyTorch.

def conv(weights, name, images, stride=1):
    kernel = weights[f'{name}.weight'].astype(np.float64)
    pad = kernel.shape[-1] // 2
    images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(images, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    if kernel.shape[1] < images.shape[1]:  # Each channel by itself.
        return np.einsum('bchwyx,cyx->bchw', windows, kernel[:, 0])
    outputs = np.einsum('bihwyx,oiyx->bohw', windows, kernel, optimize=True)
    return outputs + weights[f'{name}.bias'][:, None, None] if f'{name}.bias' in weights else outputs


def norm(weights, name, images):
    def scaled(name, images, mean, variance):
        scale, offset = (weights[f'{name}.{kind}'][:, None, None] for kind in ('weight', 'bias'))
        return (images - mean) / np.sqrt(variance + 1e-5) * scale + offset

    def batch_norm(name, images):
        return scaled(name, images, *(weights[f'{name}.{kind}'].astype(np.float64)[:, None, None]
                                      for kind in ('running_mean', 'running_var')))

    if f'{name}.IN.weight' not in weights:
        return batch_norm(name, images)
    first, second = np.split(images, 2, axis=1)
    mean = first.mean(axis=(2, 3), keepdims=True)
    first = scaled(f'{name}.IN', first, mean, ((first - mean) ** 2).mean(axis=(2, 3), keepdims=True))
    return np.concatenate([first, batch_norm(f'{name}.BN', second)], axis=1)


def relu(x):
    return np.maximum(x, 0)


def max_pooled(images):
    images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return sliding_window_view(images, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def prepared(images):
    return ((images.astype(np.float64) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def osnet(weights, images):
    def conv_bn(name, net, stride=1):
        return norm(weights, f'{name}.bn', conv(weights, f'{name}.conv', net, stride))

    def light(name, net):
        net = conv(weights, f'{name}.conv2', conv(weights, f'{name}.conv1', net))
        return relu(norm(weights, f'{name}.bn', net))

    def gated(name, net):
        hidden = relu(conv(weights, f'{name}.fc1', net.mean(axis=(2, 3), keepdims=True)))
        return net / (1 + np.exp(-conv(weights, f'{name}.fc2', hidden)))

    net, found = max_pooled(relu(conv_bn('conv1', prepared(images), 2))), {}
    for stage in (2, 3, 4):
        for block in (f'conv{stage}.0', f'conv{stage}.1'):
            inside = relu(conv_bn(f'{block}.conv1', net))
            fused = gated(f'{block}.gate', light(f'{block}.conv2a', inside))
            for letter, length in (('b', 2), ('c', 3), ('d', 4)):
                stream = functools.reduce(lambda stream, number: light(f'{block}.conv2{letter}.{number}', stream),
                                          range(length), inside)
                fused = fused + gated(f'{block}.gate', stream)
            shortcut = conv_bn(f'{block}.downsample', net) if block.endswith('0') else net
            net = relu(conv_bn(f'{block}.conv3', fused) + shortcut)
        if stage < 4:
            net = relu(conv_bn(f'conv{stage}.2.0', net))
            net = sliding_window_view(net, (2, 2), axis=(2, 3))[:, :, ::2, ::2].mean(axis=(4, 5))
        found[f'conv{stage}'] = net
    return found | {'conv5': relu(conv_bn('conv5', net))}


def resnet(weights, images, unit_counts, last_stride):
    net, found = relu(norm(weights, 'bn1', conv(weights, 'conv1', prepared(images), 2))), {}
    net = max_pooled(net)
    for stage, units in enumerate(unit_counts, start=1):
        for number in range(units):
            unit, stride = f'layer{stage}.{number}', (1, 2, 2, last_stride)[stage - 1] if number == 0 else 1
            shortcut = net
            if number == 0:
                shortcut = norm(weights, f'{unit}.downsample.1', conv(weights, f'{unit}.downsample.0', net, stride))
            net = relu(norm(weights, f'{unit}.bn1', conv(weights, f'{unit}.conv1', net)))
            net = relu(norm(weights, f'{unit}.bn2', conv(weights, f'{unit}.conv2', net, stride)))
            net = relu(norm(weights, f'{unit}.bn3', conv(weights, f'{unit}.conv3', net)) + shortcut)
        found[f'layer{stage}'] = net
    return found


# The tests.

def saved(path, weights, prefix=''):
    save_file({prefix + name: np.ascontiguousarray(array) for name, array in weights.items()}, path)
    return str(path)


def loaded(path, body):
    """Load a file into a body. Returns the names of its other contents."""
    return pretrained.load_published(path, model.named_variables(body), _torch_weights)


def check(body, forward, *sizes):
    """Compare a body with a function images -> {endpoint: feature map}."""
    for size in sizes:
        images = np.random.default_rng(1).uniform(0, 255, (2, *size, 3)).astype(np.float32)
        outputs, expected = body(images, training=False), forward(images)
        assert set(outputs) == {*expected, 'model_output'}
        for name, features in expected.items():
            np.testing.assert_allclose(outputs[name], features.transpose(0, 2, 3, 1), rtol=0,
                                       atol=1e-5 * abs(features).max(), err_msg=f'{size} {name}')
        np.testing.assert_allclose(outputs['model_output'], features.mean(axis=(2, 3)), rtol=0,
                                   atol=1e-5 * abs(features).max())


@pytest.fixture(scope='module')
def small_osnet():
    return plugins.load('nets', 'osnet_x0_25').body((None, None, 3))


def test_osnet(small_osnet, tmp_path):
    weights = random_weights(osnet_shapes((16, 64, 96, 128)))
    others = loaded(saved(tmp_path / 'a.safetensors', weights, 'module.'), small_osnet)
    assert others == [f'module.{name}' for name in (
        'classifier.bias', 'classifier.weight', 'fc.0.bias', 'fc.0.weight', 'fc.1.bias', 'fc.1.running_mean',
        'fc.1.running_var', 'fc.1.weight')]
    check(small_osnet, functools.partial(osnet, weights), (64, 32), (65, 37))


@pytest.mark.parametrize('instance_norm, last_stride, prefix, size',
                         [(False, 2, '', (64, 32)), (True, 1, 'base.', (65, 37))])
def test_resnet(instance_norm, last_stride, prefix, size, tmp_path):
    unit_counts = (2, 1, 1, 1)
    weights = random_weights(resnet_shapes(instance_norm, unit_counts))
    body = _torch_resnet.body((None, None, 3), last_stride, name='small', instance_norm=instance_norm,
                              unit_counts=unit_counts)
    path = saved(tmp_path / 'a.safetensors', weights, prefix)
    assert loaded(path, body) == [f'{prefix}fc.bias', f'{prefix}fc.weight']
    check(body, functools.partial(resnet, weights, unit_counts=unit_counts, last_stride=last_stride), size)


def test_weights_that_do_not_fit(small_osnet, tmp_path):
    def refused(shapes, match):
        path = saved(tmp_path / 'a.safetensors', random_weights(shapes))
        with pytest.raises(InputError, match=match):
            loaded(path, small_osnet)

    good = osnet_shapes((16, 64, 96, 128))
    refused(osnet_shapes((64, 256, 384, 512)),
            r'no way to make osnet_x0_25/conv1/conv/weights \(7, 7, 3, 16\) of conv1.conv.weight \(64, 3, 7, 7\), .* more')
    refused(resnet_shapes(True, (1, 1, 1, 1)), r'lacks conv1.bn.bias, .* and it holds bn1.bias \(64,\)')
    refused({**good, 'conv2.0.IN.weight': (64,)}, r'holds conv2.0.IN.weight \(64,\), which this net has not')
    refused({**good, 'conv2.0.gate.fc1.weight': (1, 16, 3, 3)}, r'fc1/weights \(16, 1\) of .* \(1, 16, 3, 3\)')
    refused({name: shape for name, shape in good.items() if 'gate.fc2' not in name},
            'lacks conv2.0.gate.fc2.bias, .* and 9 more')


def test_options_of_files(tmp_path):
    path = saved(tmp_path / 'a.safetensors', {'conv1.weight': np.zeros((64, 3, 7, 7), np.float32)})
    for name in ('osnet_x1_0', 'osnet_x0_25', 'resnet50_ibn', 'resnet50_torch'):
        assert pretrained.published_options(name, path) == {'pixels': 'imagenet'}
    assert weight_files.shapes(path) == {'conv1.weight': (64, 3, 7, 7)}
    images = tf.constant(np.linspace(0, 255, 12, dtype=np.float32).reshape(1, 2, 2, 3))
    bodies = {pixels: model.without_values(plugins.load('nets', 'resnet50_torch').body, (2, 2, 3), pixels=pixels)
              for pixels in ('imagenet', 'half')}
    first = {pixels: keras.Model(body.input, body.get_layer('resnet50_torch.conv1').input)(images)[:, 3:5, 3:5]
             for pixels, body in bodies.items()}
    np.testing.assert_allclose(first['imagenet'], prepared(images.numpy()).transpose(0, 2, 3, 1), rtol=1e-5)
    np.testing.assert_allclose(first['half'], images / 127.5 - 1, atol=1e-6)


# Parameters that are learned, as torchreid and torchvision print them, without the last dense layers. torchreid counts a
# gate as often as it is used, which is four times: three of these are taken off.
PARAMETERS = {
    'osnet_x1_0': 2_193_616 - (512 * 512 + 3 * 512) - 3 * 2 * sum(2 * 16 * n * n + 17 * n for n in (4, 6, 8)),
    'resnet50_ibn': 25_557_032 - 2049 * 1000,
    'resnet50_torch': 25_557_032 - 2049 * 1000,
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters(name):
    body = model.without_values(plugins.load('nets', name).body, (256, 128, 3))
    assert sum(np.prod(variable.shape) for variable in body.trainable_variables) == PARAMETERS[name]
    # A single tensor continues after each residual unit, so the tensors before it need not be kept.
    units = {'osnet_x1_0': 6, 'resnet50_ibn': 16, 'resnet50_torch': 16}[name]
    assert len(recompute.cuts_of([body.output['model_output']])) == units


def test_sizes_of_images():
    with pytest.raises(InputError, match='osnet_x0_25 takes no images of 12x64: at least 13 pixels a side'):
        plugins.load('nets', 'osnet_x0_25').body((12, 64, 3))
    output = model.without_values(plugins.load('nets', 'osnet_x0_25').body, (13, 14, 3)).output
    assert output['conv5'].shape == (None, 1, 1, 128)
    shapes = [model.without_values(_torch_resnet.body, (256, 128, 3), stride, name='small', instance_norm=True,
                                   unit_counts=(1, 1, 1, 1)).output['layer4'].shape for stride in (1, 2)]
    assert shapes == [(None, 16, 8, 2048), (None, 8, 4, 2048)]


def test_instance_norm():
    """The variance is so small that PyTorch's epsilon counts."""
    inputs = np.random.default_rng(0).normal(0, 0.003, (2, 8, 4, 3)).astype(np.float32)
    layer = _torch_resnet.InstanceNorm()
    layer.build(inputs.shape)
    layer.set_weights([np.array([0.5, 1, 2]), np.array([-1, 0, 3])])
    expected = inputs - inputs.mean(axis=(1, 2), keepdims=True)
    expected = expected / np.sqrt(inputs.var(axis=(1, 2), keepdims=True) + 1e-5) * [0.5, 1, 2] + [-1, 0, 3]
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_instance_norm_in_mixed_precision(dtype):
    """It rounds once: its result is exact to half a unit in the last place of 16 bits."""
    inputs = tf.cast(np.random.default_rng(0).normal(100, 1, (2, 8, 4, 3)), dtype)
    layer = _torch_resnet.InstanceNorm(dtype=f'mixed_{dtype}')
    outputs = layer(inputs)
    assert outputs.dtype == dtype and {variable.dtype for variable in layer.variables} == {'float32'}
    exact = tf.cast(inputs, tf.float64).numpy()
    exact = (exact - exact.mean(axis=(1, 2), keepdims=True)) / np.sqrt(exact.var(axis=(1, 2), keepdims=True) + 1e-5)
    error = abs(tf.cast(outputs, tf.float64) - exact) / np.maximum(abs(exact), 0.1)
    assert 0 < error.numpy().max() < {'bfloat16': 2 ** -8, 'float16': 2 ** -11}[dtype] * 1.01


def test_exports(tmp_path):
    body = torch_body((17, 11, 3))
    network = keras.Model(body.input, {'emb': body.output['model_output']})
    random = np.random.default_rng(0)
    for variable in network.variables:
        is_scale = variable.path.endswith(('gamma', 'moving_variance'))
        variable.assign(random.uniform(0.5, 1.5, variable.shape) if is_scale else random.normal(0, 0.2, variable.shape))
    images = random.uniform(0, 255, (3, 17, 11, 3)).astype(np.float32)
    expected = network(images, training=False)['emb'].numpy()
    module = freeze.embedder(network, (17, 11), freeze.make_parser().parse_args([]))
    for ending in ('', '.tflite', '.onnx'):
        with exports.written(str(tmp_path / f'net{ending}'), module) as export:
            np.testing.assert_allclose(export.embed(images), expected, atol=1e-4, err_msg=ending)

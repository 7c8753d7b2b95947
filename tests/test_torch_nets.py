"""OSNet and PyTorch's ResNets against plain NumPy, from the same arrays laid out as they are published."""
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

from _matrix import torch_body
from _published_torch import INSTANCE_NORMS, light_convs, osnet_shapes, random_weights, resnet_shapes, saved, transition
from nets import _osnet, _torch_resnet, _torch_weights
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.modeling import export_module, exports, model, published, recompute, weight_files
from tripletreid.modeling.inference_flags import View

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


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

    def instance_norm(name, images):
        mean = images.mean(axis=(2, 3), keepdims=True)
        return scaled(name, images, mean, ((images - mean) ** 2).mean(axis=(2, 3), keepdims=True))

    if f'{name}.IN.weight' in weights:
        first, second = np.split(images, 2, axis=1)
        return np.concatenate([instance_norm(f'{name}.IN', first), batch_norm(f'{name}.BN', second)], axis=1)
    return (batch_norm if f'{name}.running_mean' in weights else instance_norm)(name, images)


def relu(x):
    return np.maximum(x, 0)


def max_pooled(images, padding=(1, 1)):
    """PyTorch's maxima of 3×3 in strides of 2; without padding before the first pixel, in its ceil mode."""
    images = np.pad(images, ((0, 0), (0, 0), padding, padding), constant_values=-np.inf)
    return sliding_window_view(images, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def prepared(images):
    return ((images.astype(np.float64) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


def osnet(weights, images, kind='plain'):
    def conv_bn(name, net, stride=1):
        return norm(weights, f'{name}.bn', conv(weights, f'{name}.conv', net, stride))

    def light(net, name):
        net = conv(weights, f'{name}.conv2', conv(weights, f'{name}.conv1', net))
        return relu(norm(weights, f'{name}.bn', net))

    def gated(name, net):
        hidden = relu(conv(weights, f'{name}.fc1', net.mean(axis=(2, 3), keepdims=True)))
        return net / (1 + np.exp(-conv(weights, f'{name}.fc2', hidden)))

    net, found = max_pooled(relu(conv_bn('conv1', prepared(images), 2))), {}
    for stage in (2, 3, 4):
        for block in (f'conv{stage}.0', f'conv{stage}.1'):
            inside = relu(conv_bn(f'{block}.conv1', net))
            fused = sum(gated(f'{block}.gate', functools.reduce(light, stream, inside))
                        for stream in light_convs(block, kind))
            has_norm = block in INSTANCE_NORMS[kind]
            if kind == 'ain' and has_norm:
                branch = norm(weights, f'{block}.IN', conv(weights, f'{block}.conv3.conv', fused))
            else:
                branch = conv_bn(f'{block}.conv3', fused)
            net = branch + (conv_bn(f'{block}.downsample', net) if block.endswith('0') else net)
            net = relu(norm(weights, f'{block}.IN', net) if kind == 'ibn' and has_norm else net)
        if stage < 4:
            net = relu(conv_bn(transition(stage, kind), net))
            net = sliding_window_view(net, (2, 2), axis=(2, 3))[:, :, ::2, ::2].mean(axis=(4, 5))
        found[f'conv{stage}'] = net
    return found | {'conv5': relu(conv_bn('conv5', net))}


def resnet(weights, images, unit_counts, last_stride, stem='torchvision'):
    net, found = norm(weights, 'bn1', conv(weights, 'conv1', prepared(images), 2)), {}
    net = net if stem == 'strong_baseline' else relu(net)
    net = max_pooled(net, (0, 1) if stem == 'fast_reid' else (1, 1))
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

def loaded(path, body):
    """Load a file into a body. Returns the names of its other contents."""
    return published.load(path, model.named_variables(body), _torch_weights)


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


@pytest.mark.parametrize('kind', ['ibn', 'ain'])
def test_osnet_with_instance_norm(kind, tmp_path):
    weights = random_weights(osnet_shapes((16, 64, 96, 128), kind))
    norms = {'ibn': _osnet.IBN, 'ain': _osnet.AIN}[kind]
    body = _osnet.body((None, None, 3), name='small', channels=(16, 64, 96, 128), norms=norms)
    loaded(saved(tmp_path / 'a.safetensors', weights), body)
    check(body, functools.partial(osnet, weights, kind=kind), (65, 37))


def test_osnet(small_osnet, tmp_path):
    weights = random_weights(osnet_shapes((16, 64, 96, 128)))
    others = loaded(saved(tmp_path / 'a.safetensors', weights, 'module.'), small_osnet)
    assert others == [f'module.{name}' for name in (
        'classifier.bias', 'classifier.weight', 'fc.0.bias', 'fc.0.weight', 'fc.1.bias', 'fc.1.running_mean',
        'fc.1.running_var', 'fc.1.weight')]
    check(small_osnet, functools.partial(osnet, weights), (64, 32), (65, 37))


@pytest.mark.parametrize('instance_norm, last_stride, stem, prefix, size',
                         [(False, 2, 'torchvision', '', (64, 32)), (True, 1, 'torchvision', 'base.', (65, 37)),
                          (False, 1, 'fast_reid', 'backbone.', (64, 34)),
                          (False, 1, 'strong_baseline', 'module.base.', (33, 64))])
def test_resnet(instance_norm, last_stride, stem, prefix, size, tmp_path):
    unit_counts = (2, 1, 1, 1)
    weights = random_weights(resnet_shapes(instance_norm, unit_counts))
    body = _torch_resnet.body((None, None, 3), last_stride, stem=stem, name='small', instance_norm=instance_norm,
                              unit_counts=unit_counts)
    path = saved(tmp_path / 'a.safetensors', weights, prefix)
    assert loaded(path, body) == [f'{prefix}fc.bias', f'{prefix}fc.weight']
    check(body, functools.partial(resnet, weights, unit_counts=unit_counts, last_stride=last_stride, stem=stem), size)


def test_weights_that_do_not_fit(small_osnet, tmp_path):
    def refused(shapes, match):
        path = saved(tmp_path / 'a.safetensors', random_weights(shapes))
        with pytest.raises(InputError, match=match):
            loaded(path, small_osnet)

    good = osnet_shapes((16, 64, 96, 128))
    refused(osnet_shapes((64, 256, 384, 512)), 'is not a file of this net but of osnet_x1_0: choose --model_name osnet_x1_0')
    refused(resnet_shapes(True, (1, 1, 1, 1)), r'lacks conv1.bn.bias, .* and it holds conv1.weight \(64, 3, 7, 7\)')
    refused({**good, 'conv2.0.IN.weight': (64,)}, r'holds conv2.0.IN.weight \(64,\), which this net does not have')
    refused({**good, 'conv2.0.gate.fc1.weight': (1, 16, 3, 3)}, r'fc1/weights \(16, 1\) of .* \(1, 16, 3, 3\)')
    refused({name: shape for name, shape in good.items() if 'gate.fc2' not in name},
            'lacks conv2.0.gate.fc2.bias, .* and 9 more')


def test_options_of_files(tmp_path):
    path = saved(tmp_path / 'a.safetensors', {'conv1.weight': np.zeros((64, 3, 7, 7), np.float32)})
    for name in ('osnet_x1_0', 'osnet_x0_25', 'resnet50_ibn', 'resnet50_torch'):
        assert published.options(name, path) == {'pixels': 'imagenet'}
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
    module = export_module.embedder(network, View((17, 11), (17, 11)))
    for ending in ('', '.tflite', '.onnx'):
        with exports.written(str(tmp_path / f'net{ending}'), module) as export:
            np.testing.assert_allclose(export.embed(images), expected, atol=1e-4, err_msg=ending)

"""Weights of PyTorch's nets for re-identification: their names and shapes, random values, and files."""
import numpy as np
from safetensors.numpy import save_file


def conv_shapes(name, inputs, outputs, size=1):
    return {f'{name}.weight': (outputs, inputs, size, size)}


def norm_shapes(name, channels):
    return {f'{name}.{kind}': (channels,) for kind in ('weight', 'bias', 'running_mean', 'running_var')} | {
        f'{name}.num_batches_tracked': ()}


# The blocks with an instance norm.
INSTANCE_NORMS = {'plain': (), 'ibn': ('conv2.0', 'conv2.1'), 'ain': ('conv2.0', 'conv2.1', 'conv3.1', 'conv4.0')}


def light_convs(block, kind):
    """Names of the separable convolutions of a block, a list for each stream."""
    if kind == 'ain':
        return [[f'{block}.conv2.{length}.layers.{number}' for number in range(length + 1)] for length in range(4)]
    return [[f'{block}.conv2a'], *([f'{block}.conv2{letter}.{number}' for number in range(length)]
                                   for letter, length in (('b', 2), ('c', 3), ('d', 4)))]


def transition(stage, kind):
    return f'pool{stage}.0' if kind == 'ain' else f'conv{stage}.2.0'


def osnet_shapes(channels, kind='plain', dim=8):
    """torchreid's, with the last dense layer and the classifier."""
    def conv_bn(name, inputs, outputs, size=1):
        return conv_shapes(f'{name}.conv', inputs, outputs, size) | norm_shapes(f'{name}.bn', outputs)

    def instance_norm(name, channels):
        return {f'{name}.weight': (channels,), f'{name}.bias': (channels,)}

    shapes, before = conv_bn('conv1', 3, channels[0], 7), channels[0]
    if kind != 'plain':
        shapes = conv_shapes('conv1.conv', 3, channels[0], 7) | instance_norm('conv1.bn', channels[0])
    for stage, width in zip((2, 3, 4), channels[1:]):
        for number in (0, 1):
            block, inside = f'conv{stage}.{number}', width // 4
            shapes |= conv_bn(f'{block}.conv1', before, inside)
            if block in INSTANCE_NORMS[kind]:
                shapes |= instance_norm(f'{block}.IN', width)
            is_inside = kind == 'ain' and block in INSTANCE_NORMS[kind]
            shapes |= (conv_shapes if is_inside else conv_bn)(f'{block}.conv3' + '.conv' * is_inside, inside, width)
            for light in sum(light_convs(block, kind), []):
                shapes |= conv_shapes(f'{light}.conv1', inside, inside) | conv_shapes(f'{light}.conv2', 1, inside, 3)
                shapes |= norm_shapes(f'{light}.bn', inside)
            for name, ends in (('fc1', (inside, inside // 16)), ('fc2', (inside // 16, inside))):
                shapes |= conv_shapes(f'{block}.gate.{name}', *ends) | {f'{block}.gate.{name}.bias': ends[1:]}
            if number == 0:
                shapes |= conv_bn(f'{block}.downsample', before, width)
            before = width
        shapes |= conv_bn(transition(stage, kind), width, width) if stage < 4 else {}
    shapes |= conv_bn('conv5', width, width) | {'fc.0.weight': (dim, width), 'fc.0.bias': (dim,), **norm_shapes('fc.1', dim)}
    return shapes | {'classifier.weight': (5, dim), 'classifier.bias': (5,)}


def resnet_shapes(instance_norm, unit_counts):
    """Return the shapes of a ResNet of torchvision or of the authors of IBN-Net, with the classifier."""
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


def saved(path, weights, prefix=''):
    save_file({prefix + name: np.ascontiguousarray(array) for name, array in weights.items()}, path)
    return str(path)

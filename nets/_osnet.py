"""Omni-scale networks (Zhou et al., ICCV 2019, arXiv 1905.00953): light, made for re-identification.

A block sees up to 3, 5, 7 and 9 pixels in streams of separable convolutions, which share a gate that weights the channels of
each image. Layers have the names that torchreid gives them. torchreid's last dense layer is no part of the body; it is the
head `linear_bn_relu`.
"""
from typing import NamedTuple

import keras

from nets import _pooling, _resnet
from nets._applications import PIXELS
from nets._options import Pixels, Pooling
from nets._torch_resnet import InstanceNorm, stem_pooled
from tripletreid.errors import InputError
from tripletreid.modeling.batch_norm import BatchNorm

# A transition has the name conv2.2 (pool2 in OSNet-AIN), so it belongs to the stage before.
STAGES = (r'\w+/conv1/', *(rf'\w+/(conv|pool){stage}/' for stage in (2, 3, 4)), r'\w+/conv5/')
SMALLEST = 13


class Norms(NamedTuple):
    """The place of instance norms in a network.

    stem: whether the first convolution has an instance norm.
    blocks: for the two blocks of each of the three stages: None, 'inside' (in place of the branch's last batch norm) or
        'outside' (after the sum with the shortcut).
    is_ain: whether layers have the names of torchreid's OSNet-AIN.
    """
    stem: bool
    blocks: tuple
    is_ain: bool = False


PLAIN = Norms(False, ((None, None),) * 3)
IBN = Norms(True, (('outside', 'outside'), (None, None), (None, None)))
AIN = Norms(True, (('inside', 'inside'), (None, 'inside'), ('inside', None)), True)


def signatures(channels, *names):
    """Return the arrays that distinguish a network with these channels from others, see `tripletreid.modeling.published`."""
    return ({'conv1.conv.weight': (channels[0], 3, 7, 7), 'conv5.conv.weight': (channels[3], channels[3], 1, 1),
             **dict.fromkeys(names, (channels[1],))},)


def body(input_shape, pooling: Pooling = 'avg', pixels: Pixels = 'imagenet', *, name, channels, norms=PLAIN):
    """Build an omni-scale network.

    Args:
        input_shape: (H, W, 3).
        pooling: 'avg' or 'gem'.
        pixels: the normalisation, see `_applications.PIXELS`.
        name: of the net, and TF1 scope of its variables.
        channels: of the first convolution and of the three stages after it, four numbers.
        norms: `Norms`.

    Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'conv2'..'conv5': feature maps,
        'model_output': [B, channels[3]]}.

    Raises:
        InputError: images too small for the poolings.
    """
    if any(side is not None and side < SMALLEST for side in input_shape[:2]):
        raise InputError(f'{name} takes no images of {input_shape[0]}x{input_shape[1]}: at least {SMALLEST} pixels a side.')
    images = keras.Input(input_shape, name='images')
    net = _resnet.conv(PIXELS[pixels](images), f'{name}.conv1.conv', channels[0], 7, 2)
    net = stem_pooled(keras.ops.relu((InstanceNorm if norms.stem else BatchNorm)(name=f'{name}.conv1.bn')(net)))
    endpoints = {}
    for stage, width in enumerate(channels[1:], start=2):
        for number in (0, 1):
            net = block(net, f'{name}.conv{stage}.{number}', width, norms.blocks[stage - 2][number], norms.is_ain)
        if stage < 4:
            transition = f'{name}.pool{stage}.0' if norms.is_ain else f'{name}.conv{stage}.2.0'
            net = keras.layers.AveragePooling2D(2)(conv_bn(net, transition, width))
        endpoints[f'conv{stage}'] = net
    endpoints['conv5'] = conv_bn(net, f'{name}.conv5', channels[-1])
    endpoints['model_output'] = _pooling.pooled(endpoints['conv5'], pooling)
    return keras.Model(images, endpoints, name=name)


def conv_bn(net, name, filters, activation=keras.ops.relu):
    """Apply the 1×1 convolution `name`.conv, the batch norm `name`.bn and an activation to [B, H, W, C]."""
    net = BatchNorm(name=f'{name}.bn')(_resnet.conv(net, f'{name}.conv', filters, 1))
    return activation(net) if activation else net


def block(net, name, width, instance_norm, is_ain):
    """Apply one residual block, [B, H, W, C] -> [B, H, W, width]; its branch has a quarter of these channels.

    instance_norm: as in `Norms.blocks`.
    """
    shortcut = net
    if net.shape[-1] != width:
        shortcut = conv_bn(net, f'{name}.downsample', width, activation=None)
    net = conv_bn(net, f'{name}.conv1', width // 4)
    streams = []
    for length, letter in enumerate('abcd', start=1):
        stream = net
        for number in range(length):
            layer = f'{letter}.{number}' if length > 1 else letter
            stream = light_conv(stream, f'{name}.conv2' + (f'.{length - 1}.layers.{number}' if is_ain else layer))
        streams.append(stream)
    net = gated(streams, f'{name}.gate')
    if instance_norm == 'inside':
        net = InstanceNorm(name=f'{name}.IN')(_resnet.conv(net, f'{name}.conv3.conv', width, 1))
    else:
        net = conv_bn(net, f'{name}.conv3', width, activation=None)
    net = shortcut + net
    return keras.ops.relu(InstanceNorm(name=f'{name}.IN')(net) if instance_norm == 'outside' else net)


def light_conv(net, name):
    """Apply a separable convolution of 3×3, the pointwise one first, [B, H, W, C] -> the same shape."""
    net = _resnet.conv(net, f'{name}.conv1', net.shape[-1], 1)
    # One initialiser for each layer: Keras's give the same numbers every time they are called.
    net = keras.layers.DepthwiseConv2D(3, padding='same', use_bias=False, depthwise_initializer='he_normal',
                                       name=f'{name}.conv2')(net)
    return keras.ops.relu(BatchNorm(name=f'{name}.bn')(net))


def gated(streams, name):
    """Return the sum of streams [B, H, W, C], each multiplied per channel by the gate of its own average."""
    channels = streams[0].shape[-1]
    averages = keras.ops.stack([keras.layers.GlobalAveragePooling2D(dtype='float32')(stream) for stream in streams], axis=1)
    hidden = keras.layers.Dense(channels // 16, 'relu', kernel_initializer='he_normal', name=f'{name}.fc1')(averages)
    gates = keras.layers.Dense(channels, 'sigmoid', kernel_initializer='he_normal', name=f'{name}.fc2')(hidden)
    return sum(stream * gates[:, number, None, None] for number, stream in enumerate(streams))

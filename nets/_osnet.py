"""Omni-scale networks (Zhou et al., ICCV 2019, arXiv 1905.00953): light, made for re-identification.

A block looks at up to 3, 5, 7 and 9 pixels in streams of separable convolutions, and a gate that they share says for each
image how much of which channel counts. Layers have the names that torchreid gives them. Its last dense layer is not part
of the body: heads take its place.
"""
import keras

from nets import _pooling, _resnet
from nets._applications import PIXELS
from nets._torch_resnet import stem_pooled
from tripletreid.errors import InputError
from tripletreid.modeling.batch_norm import BatchNorm

STAGES = tuple(rf'\w+/conv{stage}/' for stage in (1, 2, 3, 4, 5))
SMALLEST = 13


def body(input_shape, pooling='avg', pixels='imagenet', *, name, channels):
    """An omni-scale network.

    Args:
        input_shape: (H, W, 3).
        pooling: 'avg' or 'gem'.
        pixels: what they are turned into, see `_applications.PIXELS`.
        name: of the net, and TF1 scope of its variables.
        channels: of the first convolution and of the three stages behind it, four numbers.

    Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'conv2'..'conv5': feature maps,
        'model_output': [B, channels[3]]}.

    Raises:
        InputError: images too small for the poolings.
    """
    if any(side is not None and side < SMALLEST for side in input_shape[:2]):
        raise InputError(f'{name} takes no images of {input_shape[0]}x{input_shape[1]}: at least {SMALLEST} pixels a side.')
    images = keras.Input(input_shape, name='images')
    net = stem_pooled(conv_bn(PIXELS[pixels](images), f'{name}.conv1', channels[0], 7, 2))
    endpoints = {}
    for stage, width in enumerate(channels[1:], start=2):
        for number in (0, 1):
            net = block(net, f'{name}.conv{stage}.{number}', width)
        if stage < 4:
            net = keras.layers.AveragePooling2D(2)(conv_bn(net, f'{name}.conv{stage}.2.0', width))
        endpoints[f'conv{stage}'] = net
    endpoints['conv5'] = conv_bn(net, f'{name}.conv5', channels[-1])
    endpoints['model_output'] = _pooling.pooled(endpoints['conv5'], pooling)
    return keras.Model(images, endpoints, name=name)


def conv_bn(net, name, filters, kernel_size=1, strides=1, activation=keras.ops.relu):
    """Convolution `name`.conv, batch norm `name`.bn and activation of [B, H, W, C]."""
    net = BatchNorm(name=f'{name}.bn')(_resnet.conv(net, f'{name}.conv', filters, kernel_size, strides))
    return activation(net) if activation else net


def block(net, name, width):
    """One residual block: [B, H, W, C] -> [B, H, W, width]; inside it has a quarter of these channels."""
    shortcut = net
    if net.shape[-1] != width:
        shortcut = conv_bn(net, f'{name}.downsample', width, activation=None)
    net = conv_bn(net, f'{name}.conv1', width // 4)
    streams = [light_conv(net, f'{name}.conv2a')]
    for letter, length in (('b', 2), ('c', 3), ('d', 4)):
        stream = net
        for number in range(length):
            stream = light_conv(stream, f'{name}.conv2{letter}.{number}')
        streams.append(stream)
    net = conv_bn(gated(streams, f'{name}.gate'), f'{name}.conv3', width, activation=None)
    return keras.ops.relu(shortcut + net)


def light_conv(net, name):
    """A separable convolution of 3×3, the pointwise one first, [B, H, W, C] -> the same."""
    net = _resnet.conv(net, f'{name}.conv1', net.shape[-1], 1)
    # One initialiser for each layer: Keras's give the same numbers every time they are called.
    net = keras.layers.DepthwiseConv2D(3, padding='same', use_bias=False, depthwise_initializer='he_normal',
                                       name=f'{name}.conv2')(net)
    return keras.ops.relu(BatchNorm(name=f'{name}.bn')(net))


def gated(streams, name):
    """The sum of streams [B, H, W, C], each times what the gate makes of its average, a factor a channel."""
    channels = streams[0].shape[-1]
    averages = keras.ops.stack([keras.layers.GlobalAveragePooling2D(dtype='float32')(stream) for stream in streams], axis=1)
    hidden = keras.layers.Dense(channels // 16, 'relu', kernel_initializer='he_normal', name=f'{name}.fc1')(averages)
    gates = keras.layers.Dense(channels, 'sigmoid', kernel_initializer='he_normal', name=f'{name}.fc2')(hidden)
    return sum(stream * gates[:, number, None, None] for number, stream in enumerate(streams))

"""Residual networks of bottleneck units (He et al., arXiv 1512.03385), in TF-Slim's layout and in Caffe's."""
import keras

from nets import _pooling
from tripletreid.modeling.batch_norm import BatchNorm

DEPTHS = (256, 512, 1024, 2048)
RGB_MEAN = (123.68, 116.78, 103.94)
STAGES = (r'\w+/conv1/', *(rf'\w+/block{block}/' for block in (1, 2, 3, 4)))


def conv(net, name, filters, kernel_size, strides=1, use_bias=False):
    """Convolution of [B, H, W, C], which sees as many zeros on every side."""
    padding = 'same'
    if strides > 1:
        # TensorFlow's own 'same' would pad more at the bottom and the right.
        net = keras.layers.ZeroPadding2D(kernel_size // 2)(net) if kernel_size > 1 else net
        padding = 'valid'
    return keras.layers.Conv2D(filters, kernel_size, strides, padding, use_bias=use_bias,
                               kernel_initializer='he_normal', name=name)(net)


def conv_bn(net, name, filters, kernel_size, strides=1, activation=keras.ops.relu, use_bias=False):
    """Convolution `name`, batch norm `name`.BatchNorm and activation of [B, H, W, C]."""
    net = conv(net, name, filters, kernel_size, strides, use_bias)
    net = BatchNorm(name=f'{name}.BatchNorm')(net)
    return activation(net) if activation else net


def bottleneck(net, name, depth, strides):
    """Build one residual unit.

    Args:
        net: [B, H, W, C].
        name: of the unit; its convolutions are `name`.shortcut, .conv1, .conv2 and .conv3.
        depth: channels of the output; the convolutions inside have a quarter of them.
        strides: of its first 1×1 convolution and of its 3×3 convolution.
    """
    stride = strides[0] * strides[1]
    shortcut = net
    if net.shape[-1] != depth:
        shortcut = conv_bn(net, f'{name}.shortcut', depth, 1, stride, activation=None)
    elif stride > 1:
        shortcut = keras.layers.MaxPooling2D(1, stride)(net)
    net = conv_bn(net, f'{name}.conv1', depth // 4, 1, strides[0])
    net = conv_bn(net, f'{name}.conv2', depth // 4, 3, strides[1])
    net = conv_bn(net, f'{name}.conv3', depth, 1, activation=None)
    return keras.ops.relu(shortcut + net)


def slim_body(name, unit_counts, input_shape, last_stride, pooling):
    """Build the body of a ResNet v1 in TF-Slim's layout.

    Args:
        name: of the net, and TF1 scope of its variables.
        unit_counts: how many units each of the four blocks has.
        input_shape: (H, W, 3).
        last_stride: 2, or 1 for a last block that sees twice the resolution.
        pooling: 'avg' or 'gem'.

    Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'block1'..'block4': feature maps,
        'model_output': [B, 2048]}.
    """
    images = keras.Input(input_shape, name='images')
    net = conv_bn(images - keras.ops.array(RGB_MEAN), f'{name}.conv1', 64, 7, 2)
    net = keras.layers.MaxPooling2D(3, 2, 'same')(net)
    endpoints = {}
    # TF-Slim strides in the last unit of a block, so this is where the stride *between* two blocks sits.
    strides_of_blocks = (2, 2, last_stride, 1)
    for block, (depth, units, stride) in enumerate(zip(DEPTHS, unit_counts, strides_of_blocks), start=1):
        for unit in range(1, units + 1):
            strides = (1, stride if unit == units else 1)
            net = bottleneck(net, f'{name}.block{block}.unit_{unit}.bottleneck_v1', depth, strides)
        endpoints[f'block{block}'] = net
    endpoints['model_output'] = _pooling.pooled(net, pooling)
    return keras.Model(images, endpoints, name=name)

"""ResNets in torchvision's layout, and with instance norm in them (Pan et al., arXiv 1807.09441: IBN-a).

A stage strides in the 3×3 convolution of its first unit, which is also called version 1.5. Layers have the names that
torchvision and the authors of IBN-Net give them.
"""
from typing import Annotated, Literal

import keras
import tensorflow as tf

from nets import _pooling, _resnet
from nets._applications import PIXELS
from nets._options import LastStride, Pixels, Pooling
from tripletreid.modeling.batch_norm import BatchNorm

STAGES = (r'\w+/(conv1|bn1)/', *(rf'\w+/layer{stage}/' for stage in (1, 2, 3, 4)))


def body(input_shape, last_stride: LastStride = 2, pooling: Pooling = 'avg', pixels: Pixels = 'imagenet',
         stem: Annotated[Literal['torchvision', 'fast_reid', 'strong_baseline'],
                         'first layers of the ResNets of PyTorch, as the code base of their weights has them (default: as '
                         'the initial checkpoint needs; else torchvision)'] = 'torchvision',
         *, name, instance_norm, unit_counts=(3, 4, 6, 3)):
    """Build a ResNet of bottleneck units.

    Args:
        input_shape: (H, W, 3).
        last_stride: 2, or 1 for a last stage that sees twice the resolution.
        pooling: 'avg' or 'gem'.
        pixels: the normalisation, see `_applications.PIXELS`.
        stem: between the first norm and the first stage: 'torchvision' (ReLU, maxima of 3×3 with one row of padding),
            'fast_reid' (ReLU, no padding, incomplete windows at the right and the bottom) or 'strong_baseline' (as
            torchvision, without the ReLU, which that code misses and was trained without).
        name: of the net, and TF1 scope of its variables.
        instance_norm: whether the first norm of a unit, except in the last stage, is half an instance norm.
        unit_counts: how many units each of the four stages has.

    Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'layer1'..'layer4': feature maps,
        'model_output': [B, 2048]}.
    """
    images = keras.Input(input_shape, name='images')
    net = _resnet.conv(PIXELS[pixels](images), f'{name}.conv1', 64, 7, 2)
    net = STEMS[stem](BatchNorm(name=f'{name}.bn1')(net))
    endpoints, strides = {}, (1, 2, 2, last_stride)
    for stage, (depth, units, stride) in enumerate(zip(_resnet.DEPTHS, unit_counts, strides), start=1):
        for unit in range(units):
            net = bottleneck(net, f'{name}.layer{stage}.{unit}', depth, stride if unit == 0 else 1,
                             half_instance_norm if instance_norm and stage < 4 else batch_norm)
        endpoints[f'layer{stage}'] = net
    endpoints['model_output'] = _pooling.pooled(net, pooling)
    return keras.Model(images, endpoints, name=name)


def stem_pooled(net):
    """Return the maxima of 3×3 in strides of 2, padded on every side; zeros are no maximum of non-negative numbers."""
    return keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(net))


def _stem_of_fast_reid(net):
    """Return the maxima of 3×3 in strides of 2, windows that are cut off at the end included."""
    return keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(((0, 1), (0, 1)))(keras.ops.relu(net)))


def _stem_of_strong_baseline(net):
    """Return the maxima of 3×3 in strides of 2, padded on every side with less than any number of a feature map."""
    net = keras.ops.pad(net, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-6e4)  # It exists in 16 bits.
    return keras.layers.MaxPooling2D(3, 2)(net)


STEMS = {'torchvision': lambda net: stem_pooled(keras.ops.relu(net)), 'fast_reid': _stem_of_fast_reid,
         'strong_baseline': _stem_of_strong_baseline}


def bottleneck(net, name, depth, stride, first_norm):
    """Apply one residual unit: [B, H, W, C] -> [B, H/stride, W/stride, depth]; its first norm is `first_norm(net, name)`."""
    shortcut = net
    if net.shape[-1] != depth:
        shortcut = batch_norm(_resnet.conv(net, f'{name}.downsample.0', depth, 1, stride), f'{name}.downsample.1')
    net = keras.ops.relu(first_norm(_resnet.conv(net, f'{name}.conv1', depth // 4, 1), f'{name}.bn1'))
    net = keras.ops.relu(batch_norm(_resnet.conv(net, f'{name}.conv2', depth // 4, 3, stride), f'{name}.bn2'))
    net = batch_norm(_resnet.conv(net, f'{name}.conv3', depth, 1), f'{name}.bn3')
    return keras.ops.relu(shortcut + net)


def batch_norm(net, name):
    """Return the batch norm `name` of all channels."""
    return BatchNorm(name=name)(net)


def half_instance_norm(net, name):
    """Apply the instance norm `name`.IN to the first half of the channels, the batch norm `name`.BN to the others."""
    half = net.shape[-1] // 2
    return keras.layers.Concatenate()([InstanceNorm(name=f'{name}.IN')(net[..., :half]),
                                       BatchNorm(name=f'{name}.BN')(net[..., half:])])


class InstanceNorm(keras.layers.Layer):
    """Instance norm: mean 0 and variance 1 in each channel of each image [B, H, W, C], then a learned scale and offset.

    Variables and statistics are float32 whatever the inputs are.
    """
    epsilon = 1e-5

    def build(self, input_shape):
        learned = {'shape': input_shape[-1:], 'dtype': 'float32', 'autocast': False}
        self.gamma = self.add_weight(name='gamma', initializer='ones', **learned)
        self.beta = self.add_weight(name='beta', initializer='zeros', **learned)

    def call(self, inputs):
        images = tf.cast(inputs, tf.float32)
        mean, variance = tf.nn.moments(images, [1, 2], keepdims=True)
        outputs = (images - mean) * (tf.math.rsqrt(variance + self.epsilon) * self.gamma) + self.beta
        return tf.cast(outputs, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

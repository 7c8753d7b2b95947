"""MobileNet, version 1 (Howard et al., arXiv 1704.04861), full width, in TF-Slim's layout."""
import keras

from nets import _pooling
from nets._options import Pooling
from tripletreid.modeling.batch_norm import BatchNorm

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDED = (2, 4, 6, 12)
WEIGHTS = "TF-Slim's mobilenet_v1_1.0_224.ckpt"
STAGES = tuple(rf'MobilenetV1/Conv2d_{i}(_\w+)?/' for i in range(1 + len(WIDTHS)))


def body(input_shape, pooling: Pooling = 'avg'):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'Conv2d_13_pointwise': feature map, 'model_output': [B, 1024]}."""
    images = keras.Input(input_shape, name='images')
    net = _bn_relu6(_conv(WIDTHS[0] // 2, 3, 2, 'Conv2d_0')(images / 255), 'Conv2d_0')
    for i, width in enumerate(WIDTHS, start=1):
        depthwise, pointwise = f'Conv2d_{i}_depthwise', f'Conv2d_{i}_pointwise'
        net = keras.layers.DepthwiseConv2D(3, 2 if i in STRIDED else 1, 'same', use_bias=False,
                                           depthwise_initializer=_initializer(), name=f'MobilenetV1.{depthwise}')(net)
        net = _bn_relu6(net, depthwise)
        net = _bn_relu6(_conv(width, 1, 1, pointwise)(net), pointwise)
    outputs = {'Conv2d_13_pointwise': net, 'model_output': _pooling.pooled(net, pooling)}
    return keras.Model(images, outputs, name='mobilenet_v1_1_224')


def _conv(filters, kernel_size, strides, name):
    return keras.layers.Conv2D(filters, kernel_size, strides, 'same', use_bias=False,
                               kernel_initializer=_initializer(), name=f'MobilenetV1.{name}')


def _bn_relu6(net, name):
    net = BatchNorm(epsilon=1e-3, name=f'MobilenetV1.{name}.BatchNorm')(net)
    return keras.ops.relu6(net)


def _initializer():
    # One for each layer: Keras's initialisers give the same numbers every time they are called.
    return keras.initializers.TruncatedNormal(stddev=0.09)

"""ResNet-50 of Keras Applications (He et al., arXiv 1512.03385), Caffe's layout: strides in a stage's first unit."""
import keras

from nets import _applications, _pooling
from nets._options import Pooling

WEIGHTS = "Keras's resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
STAGES = _applications.RESNET_STAGES


def body(input_shape, pooling: Pooling = 'avg'):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'features': [B, H/32, W/32, 2048], 'model_output': [B, 2048]}."""
    images = keras.Input(input_shape, name='images')
    net = _applications.backbone(keras.applications.ResNet50, _applications.as_caffe(images))
    outputs = {'features': net.output, 'model_output': _pooling.pooled(net.output, pooling)}
    return keras.Model(images, outputs, name='resnet50')

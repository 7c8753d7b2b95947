"""DenseNet-121 of Keras Applications (Huang et al., arXiv 1608.06993)."""
import keras

from nets import _applications, _pooling
from nets._options import Pooling

WEIGHTS = "Keras's densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"
STAGES = ('conv1_', 'conv2_|pool2_', 'conv3_|pool3_', 'conv4_|pool4_', 'conv5_')


def body(input_shape, pooling: Pooling = 'avg'):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'features': [B, H/32, W/32, 1024], 'model_output': [B, 1024]}."""
    images = keras.Input(input_shape, name='images')
    net = _applications.backbone(keras.applications.DenseNet121, _applications.as_torch(images))
    outputs = {'features': net.output, 'model_output': _pooling.pooled(net.output, pooling)}
    return keras.Model(images, outputs, name='densenet121')

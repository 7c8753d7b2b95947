"""ResNet-50 with mid-level features (Yu et al., The Devil is in the Middle, arXiv 1711.08106), as in deep-person-reid.

The averages of the last stage's first two blocks are fused by a dense layer, and concatenated with the average of its last
block.
"""
import keras

from nets import _applications, _pooling
from tripletreid.modeling.batch_norm import BatchNorm

WEIGHTS = "Keras's resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
STAGES = _applications.RESNET_STAGES


def body(input_shape):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'features': [B, H/32, W/32, 2048], 'model_output': [B, 2048 + 1024]}."""
    images = keras.Input(input_shape, name='images')
    net = _applications.backbone(keras.applications.ResNet50, _applications.as_caffe(images))
    pooled = [_pooling.pooled(net.get_layer(f'conv5_block{block}_out').output, 'avg') for block in (1, 2, 3)]
    fused = keras.layers.Concatenate()(pooled[:2])
    fused = keras.layers.Dense(1024, use_bias=False, kernel_initializer='he_normal', name='fusion')(fused)
    fused = keras.ops.relu(BatchNorm(name='fusion.BatchNorm')(fused))
    model_output = keras.layers.Concatenate(dtype='float32')([pooled[2], fused])
    return keras.Model(images, {'features': net.output, 'model_output': model_output}, name='resnet50_mid')

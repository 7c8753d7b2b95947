"""ConvNeXt-Tiny of Keras Applications (Liu et al., arXiv 2201.03545).

It has no batch norm and, as Keras builds it, nothing random.
"""
import keras

from nets import _applications, _pooling
from nets._options import Pooling

WEIGHTS = "Keras's convnext_tiny_notop.h5"
STAGES = ('convnext_tiny_stem/', 'convnext_tiny_stage_0_',
          *(f'convnext_tiny_(downsampling_block_{stage - 1}/|stage_{stage}_)' for stage in (1, 2, 3)))


def body(input_shape, pooling: Pooling = 'avg'):
    """Map images [B, H, W, 3] of RGB 0..255 -> {'features': [B, H/32, W/32, 768], 'model_output': [B, 768]}."""
    images = keras.Input(input_shape, name='images')
    net = _applications.backbone(keras.applications.ConvNeXtTiny, images)
    # Keras gives its last layer another name each time, so that it would not be found again in a checkpoint.
    last_norm = keras.layers.LayerNormalization(epsilon=1e-6, name='convnext_tiny_head_layernorm')
    features = last_norm(net.layers[-1].input)
    outputs = {'features': features, 'model_output': _pooling.pooled(features, pooling)}
    return keras.Model(images, outputs, name='convnext_tiny')

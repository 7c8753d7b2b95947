"""Nets with few units, for tests that need each kind of layer and not all of them."""
import sys

import keras

from nets import _resnet, mobilenet_v1_1_224

DENSENET, RESNET, CONVNEXT = (sys.modules[application.__module__] for application in (
    keras.applications.DenseNet121, keras.applications.ResNet50, keras.applications.ConvNeXtTiny))
DENSE, RESIDUAL, CONFIGS = DENSENET.dense_block, RESNET.stack_residual_blocks_v1, CONVNEXT.MODEL_CONFIGS
SLIM_BODY, WIDTHS = _resnet.slim_body, mobilenet_v1_1_224.WIDTHS


def few_units(set_attribute):
    """Reduce DenseNet-121, ConvNeXt-Tiny, the ResNets of Keras and of TF-Slim, and MobileNet.

    Args:
        set_attribute: `setattr`, or a monkeypatch's.
    """
    set_attribute(DENSENET, 'dense_block', lambda net, _, name: DENSE(net, 1, name))
    # resnet50_mid distinguishes the units of the last stage.
    set_attribute(RESNET, 'stack_residual_blocks_v1', lambda net, width, _, stride1=2, name=None: RESIDUAL(
        net, width, 3 if name == 'conv5' else 1, stride1, name))
    set_attribute(CONVNEXT, 'MODEL_CONFIGS', {**CONFIGS, 'tiny': {**CONFIGS['tiny'], 'depths': [1, 1, 1, 1]}})
    set_attribute(_resnet, 'slim_body', lambda name, _, *more: SLIM_BODY(name, (1, 1, 1, 1), *more))
    set_attribute(mobilenet_v1_1_224, 'WIDTHS', WIDTHS[:3])

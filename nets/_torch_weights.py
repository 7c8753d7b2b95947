"""Published weights of convolutional nets in PyTorch, whose layers have the same names here: `.safetensors` or `.npz`.

These are torchreid's OSNets, torchvision's ResNets, the ResNets of the authors of IBN-Net, and the models that torchreid,
fast-reid, the strong baseline and others trained with them. `tripletreid.modeling.published` defines a layout.
"""
import re

from tripletreid.modeling.torch_names import KINDS, Source, from_torch

ANCHORS = ('conv1.weight', 'conv1.conv.weight')
OPTIONAL = ()
# Classifiers, OSNet's last dense layer, the batch norm before a classifier, fast-reid's heads.
UNNEEDED = re.compile(r'(^|\.)(fc|classifier\w*|bottleneck\w*|bnneck|heads?)\.')
# The learned exponent of a generalised mean, relative to the scope of the body.
EXPONENTS = ('heads.pool_layer.p', 'pool_layer.p', 'gem.p', 'pool.p', 'global_pool.p')


def options(held, prefix):
    """Return the options of the body: ImageNet's mean and variance in all of these files, and the stem of its code base."""
    found = {'pixels': 'imagenet'}
    outer = _outer(prefix)
    if f'{prefix}bn1.running_mean' in held:  # A ResNet.
        if any(name.startswith(f'{outer}heads.') for name in held):
            found['stem'] = 'fast_reid'
        elif prefix.endswith('base.') and f'{outer}bottleneck.running_mean' in held \
                and f'{prefix}layer1.0.bn1.IN.weight' not in held:
            found['stem'] = 'strong_baseline'
    return found


def input_size(held, prefix):
    """Return nothing: a convolutional net takes images of any size."""
    return {}


def sources(held, prefix, wanted):
    """Return {TF1 name: Source} of all variables of a body: net/layer1/0/conv1/weights is layer1.0.conv1.weight."""
    found = {name: Source((prefix + _in_torch(name),), _conversion(name)) for name in wanted
             if name != 'gem/p'}
    # A net that others pooled differently keeps the exponent that it starts with.
    exponent = [outer + name for outer in (prefix, _outer(prefix)) for name in EXPONENTS if outer + name in held]
    if 'gem/p' in wanted and exponent:
        found['gem/p'] = Source((exponent[0],), lambda shape, array: array.reshape(shape))
    return found


def is_unneeded(name, held, prefix):
    """Return whether an array is known to be no part of the body."""
    return bool(UNNEEDED.search(name))


def _outer(prefix):
    """Return the prefix of the module that holds the body: module. of module.backbone."""
    return prefix[:prefix[:-1].rfind('.') + 1]


def _in_torch(name):
    scope, _, kind = name.rpartition('/')
    return '.'.join([*scope.split('/')[1:], KINDS[kind]])


def _conversion(name):
    if name.endswith('/depthwise_weights'):
        return lambda shape, array: array.transpose(2, 3, 0, 1)  # [C, 1, h, w] -> [h, w, C, 1]
    return from_torch

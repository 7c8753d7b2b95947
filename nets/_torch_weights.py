"""Published weights of convolutional nets in PyTorch, whose layers have the same names here: `.safetensors` or `.npz`.

torchreid's OSNets, torchvision's ResNet-50, that of the authors of IBN-Net, and what others trained of these. See
`pretrained.published_layout` for the contract.
"""
import re

from nets._published import Source, from_torch, prefix_of

PREFIX = r'((base|backbone|module|model)\.)*'
# Classifiers, OSNet's last dense layer, the batch norm in front of a classifier.
BESIDE = re.compile(rf'^{PREFIX}(fc|classifier\w*|bottleneck\w*|heads?)\.')
KINDS = {'weights': 'weight', 'depthwise_weights': 'weight', 'biases': 'bias', 'gamma': 'weight', 'beta': 'bias',
         'moving_mean': 'running_mean', 'moving_variance': 'running_var'}


def options(held):
    """What all of these files want: PyTorch's mean and variance of ImageNet."""
    return {'pixels': 'imagenet'}


def sources(held, wanted):
    """{TF1 name: Source} of all variables of a body: net/layer1/0/conv1/weights is layer1.0.conv1.weight."""
    names = {name: _in_torch(name) for name in wanted}
    prefix = prefix_of(held, next(iter(names.values())), PREFIX)
    return {name: Source((prefix + theirs,), _conversion(name, wanted[name])) for name, theirs in names.items()}


def _in_torch(name):
    scope, _, kind = name.rpartition('/')
    return '.'.join([*scope.split('/')[1:], KINDS[kind]])


def _conversion(name, shape):
    if name.endswith('/depthwise_weights'):
        return lambda shape, array: array.transpose(2, 3, 0, 1)  # [C, 1, h, w] -> [h, w, C, 1]
    if len(shape) == 2:  # A dense layer here, in PyTorch a convolution of what has one pixel.
        return lambda shape, array: from_torch(shape, array.reshape(array.shape[:2]))
    return from_torch

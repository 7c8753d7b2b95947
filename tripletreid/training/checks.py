"""Checks of a training's choices that need TensorFlow, before anything is trained."""
import keras
import tensorflow as tf

from tripletreid import plugins
from tripletreid.errors import InputError


def check_margin(name, margin):
    """Raise InputError when the loss `name` is not defined for a margin; the loss raises it on a batch of two."""
    plugins.load('losses', name).loss(tf.zeros([2, 2]), tf.range(2), tf.range(2), margin)


def check_metric(name, metric):
    """Raise InputError when the loss `name` is not defined for a metric: its file lists in METRICS those that fit."""
    metrics = getattr(plugins.load('losses', name), 'METRICS', (metric,))
    if metric not in metrics:
        raise InputError(f'--loss {name} is defined for the {" or ".join(metrics)} distance, not for {metric}: give '
                         f'--metric {metrics[0]}.')


def check_determinism(network):
    """Raise InputError when a network on a GPU has layers without a deterministic gradient there."""
    depthwise = [layer.name for layer in network._flatten_layers() if isinstance(layer, keras.layers.DepthwiseConv2D)]
    if depthwise and tf.config.get_visible_devices('GPU'):
        raise InputError(f'--deterministic: on a GPU depthwise convolutions have no deterministic gradient, and '
                         f'this net has some, such as {depthwise[0]}. Omit the flag, or choose another --model_name.')

"""A trained network with everything that embed.py does around it, as one function to export."""
from typing import NamedTuple

import tensorflow as tf

from tripletreid.input_pipeline.augmentation import variants
from tripletreid.input_pipeline.images import resize_batch
from tripletreid.modeling import exports
from tripletreid.modeling.pixel_statistics import PIXEL_STATISTICS


class Interface(NamedTuple):
    """How an export takes images.

    dtype: 'float32' or 'uint8'.
    layout: 'nhwc' or 'nchw'.
    pixels: None for RGB 0..255, or a choice of PIXEL_STATISTICS by which the caller has scaled them.
    any_size: whether images have any size and are resized inside.
    """
    dtype: str = 'float32'
    layout: str = 'nhwc'
    pixels: str | None = None
    any_size: bool = False


def embedder(network, view, interface=Interface(), aggregator=None):
    """Wrap a network.

    Args:
        network: as `model.build` returns it.
        view: `inference_flags.View`.
        interface: `Interface`.
        aggregator: of the variants of an image, as embed.py's flag.

    Returns: tf.Module for `exports`: its `embed` takes a batch of images and gives {'embeddings': [B, D] float32}.
    """
    size = (None, None) if interface.any_size else view.load
    shape = (None, 3, *size) if interface.layout == 'nchw' else (None, *size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, interface.dtype, name=exports.INPUT)], autograph=False)
    def embed(images):
        images = tf.cast(images, tf.float32)
        if interface.layout == 'nchw':
            images = tf.transpose(images, [0, 2, 3, 1])
        if interface.pixels:
            mean, std = PIXEL_STATISTICS[interface.pixels]
            images = images * tf.constant(std) + tf.constant(mean)
        if interface.any_size:
            images = tf.ensure_shape(resize_batch(images, view.load), [None, *view.load, 3])
        augmented = variants(images, view.flip, view.crop, view.net)  # [A, B, H, W, 3]
        embs = network(tf.reshape(augmented, [-1, *view.net, 3]), training=False)['emb']
        embs = tf.reshape(embs, [augmented.shape[0], -1, embs.shape[-1]])
        emb = tf.reduce_mean(embs, axis=0)
        if aggregator == 'normalized_mean':
            lengths = tf.norm(emb, axis=-1, keepdims=True)
            emb /= tf.where(lengths > 0, lengths, 1)
        return {exports.OUTPUT: emb}

    module = tf.Module()
    module.weights, module.embed = [variable.value for variable in network.variables], embed
    return module

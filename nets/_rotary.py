"""Rotary position embeddings over two axes, as DINOv3 has them (Siméoni et al., arXiv 2508.10104)."""
import numpy as np
import tensorflow as tf


def rotations(tokens, height, columns, depth):
    """Compute the sines and cosines of rotary position embeddings over two axes.

    Coordinates of patches are from -1 to 1 along each side. A quarter of the channels of a head rotates by the row and a
    quarter by the column, with periods from 1 to 100; each is paired with the channel that is half a head further.

    Args:
        tokens: number of tokens before the patches, which are not rotated.
        height, columns: numbers of rows and columns of patches.
        depth: channels of a head.

    Returns: (sines, cosines), float32 [tokens + height·columns, depth].
    """
    periods = 100 ** (np.arange(depth // 4) / (depth // 4))
    rows, places = ((2 * np.arange(size) + 1) / size - 1 for size in (height, columns))
    angles = [np.repeat(rows, columns)[:, None] / periods, np.tile(places, height)[:, None] / periods]
    angles = 2 * np.pi * np.tile(np.concatenate(angles, axis=1), 2)
    angles = np.concatenate([np.zeros((tokens, depth)), angles])
    return np.float32(np.sin(angles)), np.float32(np.cos(angles))


def rotated(rows, sines, cosines):
    """Rotate pairs of channels: [B, heads, T, D] of any float type -> the same; computed in float32."""
    exact = tf.cast(rows, tf.float32)
    first, second = tf.split(exact, 2, axis=-1)
    return tf.cast(exact * cosines + tf.concat([-second, first], axis=-1) * sines, rows.dtype)

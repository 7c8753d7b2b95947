"""Batch hard (paper, section 2, eq. 5): per anchor the furthest positive against the closest negative."""
import tensorflow as tf

from loss import apply_margin, has_triplet, pair_masks


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return one loss per anchor.

    Args:
        dists: [B1, B2] float32, column i being anchor i.
        anchor_pids: [B1].
        pids: [B2].
        margin: float, 'soft' or 'none'.
        seed: int32 [2], of the step's random numbers, for losses that draw any.

    Returns: [B1] float32; 0 for an anchor without a positive or without a negative.
    """
    positive, negative = pair_masks(anchor_pids, pids)
    furthest_positive = tf.reduce_max(tf.where(positive, dists, 0.0), axis=1)
    closest_negative = tf.reduce_min(tf.where(negative, dists, dists.dtype.max), axis=1)
    losses = apply_margin(furthest_positive - closest_negative, margin)
    return tf.where(has_triplet(positive, negative), losses, 0.0)

"""The losses of all triplets of a batch, for losses that use every triplet."""
import tensorflow as tf

from loss import apply_margin, pair_masks
from tripletreid.distribute import collectives


def all_triplets(dists, anchor_pids, pids, margin):
    """Compute the loss of each triplet, with one row per positive pair: P·K·(K−1) rows, not (P·K)².

    Args: see `losses/batch_hard.py`.

    Returns:
        losses: float32 [M, B2], the losses of M pairs of an anchor and a positive with each image as the negative; 0
            where the image is no negative.
        is_triplet: bool [M, B2].
        anchors: int64 [M], the anchor of each pair.
    """
    positive, negative = pair_masks(anchor_pids, pids)
    pairs = tf.where(positive)
    anchors = pairs[:, 0]
    differences = tf.gather_nd(dists, pairs)[:, None] - tf.gather(dists, anchors)
    is_triplet = tf.gather(negative, anchors)
    return tf.where(is_triplet, apply_margin(differences, margin), 0.0), is_triplet, anchors


def mean_over(chosen, losses, anchors, num_anchors):
    """Return one loss per anchor [B1], so that the mean over all anchors is the mean over all chosen triplets.

    An anchor's loss is the sum over its chosen triplets, divided by the average number of chosen triplets per anchor on all
    devices.

    Args:
        chosen: bool [M, B2].
        losses, anchors: as from `all_triplets`.
        num_anchors: B1.
    """
    pair_sums = tf.reduce_sum(tf.where(chosen, losses, 0.0), axis=1)
    anchor_sums = tf.math.unsorted_segment_sum(pair_sums, anchors, num_anchors)
    average_count = collectives.mean(tf.reduce_sum(tf.cast(chosen, tf.float32)) / tf.cast(num_anchors, tf.float32))
    return tf.math.divide_no_nan(anchor_sums, average_count)

"""The losses of all triplets of a batch, for those that use every one of them."""
import tensorflow as tf

from loss import apply_margin, pair_masks
from tripletreid.distribute import collectives


def all_triplets(dists, anchor_pids, pids, margin):
    """The loss of each triplet. There is a row for each positive pair only: P·K·(K−1) of them, not (P·K)².

    Args: see `losses/batch_hard.py`.

    Returns:
        losses: float32 [M, B2], the losses of M pairs of an anchor and a positive with each image as the negative; 0
            where that is none.
        is_triplet: bool [M, B2].
        anchors: int64 [M], which anchor a pair has.
    """
    positive, negative = pair_masks(anchor_pids, pids)
    pairs = tf.where(positive)
    anchors = pairs[:, 0]
    differences = tf.gather_nd(dists, pairs)[:, None] - tf.gather(dists, anchors)
    is_triplet = tf.gather(negative, anchors)
    return tf.where(is_triplet, apply_margin(differences, margin), 0.0), is_triplet, anchors


def mean_over(chosen, losses, anchors, num_anchors):
    """One loss an anchor [B1], whose mean over the anchors is the mean over the chosen triplets of all anchors.

    So an anchor's loss is the sum over its chosen triplets, divided by how many of them an anchor has on average; with
    several devices, an anchor of any of them.

    Args:
        chosen: bool [M, B2].
        losses, anchors: as from `all_triplets`.
        num_anchors: B1.
    """
    of_pairs = tf.reduce_sum(tf.where(chosen, losses, 0.0), axis=1)
    of_anchors = tf.math.unsorted_segment_sum(of_pairs, anchors, num_anchors)
    average_count = collectives.mean(tf.reduce_sum(tf.cast(chosen, tf.float32)) / tf.cast(num_anchors, tf.float32))
    return tf.math.divide_no_nan(of_anchors, average_count)

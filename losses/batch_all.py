"""Batch all (paper, section 2): the mean over every triplet of the batch."""
import tensorflow as tf

from losses import _triplets


def loss(dists, anchor_pids, pids, margin, seed=None):
    """See `losses/batch_hard.py`. The mean over the anchors is the mean over all of their triplets."""
    losses, is_triplet, anchors = _triplets.all_triplets(dists, anchor_pids, pids, margin)
    return _triplets.mean_over(is_triplet, losses, anchors, tf.shape(dists)[0])

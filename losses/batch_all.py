"""Batch all (paper, section 2): the mean over every triplet of the batch."""
import tensorflow as tf

from losses import _triplets


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return losses whose mean over the anchors is the mean over all triplets; see `losses/batch_hard.py`."""
    losses, is_triplet, anchors = _triplets.all_triplets(dists, anchor_pids, pids, margin)
    return _triplets.mean_over(is_triplet, losses, anchors, tf.shape(dists)[0])

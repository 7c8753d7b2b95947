"""No metric loss, for training with the cross-entropy alone."""
import tensorflow as tf


def loss(dists, anchor_pids, pids, margin, seed=None):
    """See `losses/batch_hard.py`. All zeros."""
    return tf.zeros_like(dists[:, 0])

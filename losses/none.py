"""No metric loss, for training with cross-entropy only."""
import tensorflow as tf


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return zeros; see `losses/batch_hard.py`."""
    return tf.zeros_like(dists[:, 0])

"""Batch all, but the mean is over the active triplets only, those whose loss is not 0 (paper, section 4.2)."""
import tensorflow as tf

from loss import number_margin
from losses import _triplets


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return losses whose mean over the anchors is the mean over all active triplets; see `losses/batch_hard.py`.

    Raises:
        InputError: the margin is 'soft' or 'none', with which every triplet is active.
    """
    number_margin('batch_all_nonzero', margin)
    losses, _, anchors = _triplets.all_triplets(dists, anchor_pids, pids, margin)
    return _triplets.mean_over(losses > 0, losses, anchors, tf.shape(dists)[0])

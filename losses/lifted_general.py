"""The paper's generalised lifted loss (section 2): batch hard with log Σ exp in place of maximum and minimum."""
import tensorflow as tf

from loss import apply_margin, has_triplet, log_sum_exp, pair_masks


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return one loss per anchor; see `losses/batch_hard.py`.

    The margin can leave the logarithm: log Σ exp(m − d) = m + log Σ exp(−d).
    """
    positive, negative = pair_masks(anchor_pids, pids)
    differences = log_sum_exp(dists, positive) + log_sum_exp(-dists, negative)
    return tf.where(has_triplet(positive, negative), apply_margin(differences, margin), 0.0)

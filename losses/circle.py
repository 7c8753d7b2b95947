"""The circle loss (Sun et al., CVPR 2020, eq. 6), pairwise: each similarity is weighted by its distance from its optimum."""
import tensorflow as tf

from loss import log_sum_exp, number_margin, pair_masks

METRICS = ('cosine',)
GAMMA = 128.0


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return one loss per anchor; see `losses/batch_hard.py`. The distances are 1 − s, s being the cosine.

    The margin m relaxes the optima 1 of positives and 0 of negatives to 1 − m and m; usual is 0.25. The weights
    [1 + m − s]₊ of positives and [s + m]₊ of negatives have no gradient, as in the paper.

    Raises:
        InputError: the margin is 'soft' or 'none'.
    """
    number_margin('circle', margin)
    positive, negative = pair_masks(anchor_pids, pids)
    similarities = 1 - dists
    positive_logits = -tf.nn.relu(1 + margin - tf.stop_gradient(similarities)) * (similarities - (1 - margin))
    negative_logits = tf.nn.relu(tf.stop_gradient(similarities) + margin) * (similarities - margin)
    return tf.nn.softplus(log_sum_exp(GAMMA * positive_logits, positive) + log_sum_exp(GAMMA * negative_logits, negative))

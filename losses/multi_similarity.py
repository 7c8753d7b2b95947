"""The multi-similarity loss (Wang et al., CVPR 2019): informative pairs, weighted by all other pairs."""
import tensorflow as tf

from loss import log_sum_exp, number_margin, pair_masks

METRICS = ('cosine',)
ALPHA, BETA = 2.0, 50.0
THRESHOLD = 0.5  # λ of the authors' code; their text has 1.


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return one loss per anchor; see `losses/batch_hard.py`. The distances are 1 − s, s being the cosine.

    The margin is the ε of the mining: only negatives more similar than the least similar positive minus ε count, and only
    positives less similar than the most similar negative plus ε. The paper has 0.1; with 2 all pairs count.

    Raises:
        InputError: the margin is 'soft' or 'none'.
    """
    number_margin('multi_similarity', margin)
    positive, negative = pair_masks(anchor_pids, pids)
    furthest_positive = tf.reduce_max(tf.where(positive, dists, dists.dtype.min), axis=1, keepdims=True)
    closest_negative = tf.reduce_min(tf.where(negative, dists, dists.dtype.max), axis=1, keepdims=True)
    positive &= dists > closest_negative - margin
    negative &= dists < furthest_positive + margin
    similarities = 1 - dists
    return (tf.nn.softplus(log_sum_exp(-ALPHA * (similarities - THRESHOLD), positive)) / ALPHA
            + tf.nn.softplus(log_sum_exp(BETA * (similarities - THRESHOLD), negative)) / BETA)

"""The supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2): each positive against all other images."""
import tensorflow as tf

from loss import log_sum_exp, pair_masks
from tripletreid.errors import InputError

METRICS = ('cosine',)
TEMPERATURE = 0.1


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return one loss per anchor; see `losses/batch_hard.py`. The distances are 1 − s, s being the cosine, without
    a margin.

    Raises:
        InputError: the margin is a number.
    """
    if margin not in ('soft', 'none'):
        raise InputError(f'--loss supervised_contrastive has no margin: omit --margin {margin}.')
    positive, negative = pair_masks(anchor_pids, pids)
    logits = (1 - dists) / TEMPERATURE
    log_probabilities = logits - log_sum_exp(logits, positive | negative)[:, None]
    positives = tf.reduce_sum(tf.cast(positive, tf.float32), axis=1)
    return -tf.math.divide_no_nan(tf.reduce_sum(tf.where(positive, log_probabilities, 0.0), axis=1), positives)

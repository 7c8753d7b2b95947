"""The lifted structured loss (Song et al., CVPR 2016, eq. 4): each positive pair against all negatives of both ends."""
import tensorflow as tf

from loss import log_sum_exp, number_margin, pair_masks
from tripletreid.distribute import collectives
from tripletreid.fan_out import fan_out


def loss(dists, anchor_pids, pids, margin, seed=None):
    """Return losses whose mean is half the mean of [J]₊² over all positive pairs; see `losses/batch_hard.py`.

    The second end of a pair may be an anchor of another device, which contributes its negatives. Embeddings in a memory are
    not anchors; a pair with such an end has only the negatives of its first end.

    Raises:
        InputError: the margin is 'soft' or 'none', for which the square has no sense.
    """
    number_margin('lifted', margin)
    positive, negative = pair_masks(anchor_pids, pids)
    one_end, gathered, memory_end = fan_out(log_sum_exp(margin - dists, negative), 3)  # [B1] each
    other_end = collectives.own_first(collectives.gather(gathered))  # [B], of the anchors of all devices
    # log(exp(a) + exp(b)) = b + softplus(a - b)
    both_ends = other_end + tf.nn.softplus(one_end[:, None] - other_end)  # [B1, B]
    no_anchors = tf.shape(dists)[1] - tf.shape(other_end)[0]
    both_ends = tf.concat([both_ends, tf.repeat(memory_end[:, None], no_anchors, axis=1)], axis=1)  # [B1, B2]
    squares = tf.square(tf.nn.relu(dists + both_ends))
    average_count = collectives.mean(tf.reduce_sum(tf.cast(positive, tf.float32), axis=1))
    return tf.math.divide_no_nan(tf.reduce_sum(tf.where(positive, squares, 0.0), axis=1) / 2, average_count)

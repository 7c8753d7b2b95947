"""The lifted structured loss (Song et al., CVPR 2016, eq. 4): each positive pair against all negatives of both ends."""
import tensorflow as tf

from loss import log_sum_exp, number_margin, pair_masks


def loss(dists, anchor_pids, pids, margin, seed=None):
    """See `losses/batch_hard.py`. The mean over the anchors is half the mean of [J]₊² over all positive pairs.

    The second end of a pair needs its own distances to the negatives, so that pairs of two anchors count only. On one
    device those are all pairs; with several it takes all images of an identity in one replica.

    Raises:
        InputError: the margin is 'soft' or 'none', for which the square has no sense.
    """
    number_margin('lifted', margin)
    positive, negative = pair_masks(anchor_pids, pids)
    num_anchors = tf.shape(dists)[0]
    is_pair = positive[:, :num_anchors]
    one_end = log_sum_exp(margin - dists, negative)  # [B1]
    # log(exp(a) + exp(b)) = b + softplus(a - b)
    both_ends = one_end + tf.nn.softplus(one_end[:, None] - one_end)  # [B1, B1]
    squares = tf.square(tf.nn.relu(dists[:, :num_anchors] + both_ends))
    average_count = tf.reduce_mean(tf.reduce_sum(tf.cast(is_pair, tf.float32), axis=1))
    return tf.math.divide_no_nan(tf.reduce_sum(tf.where(is_pair, squares, 0.0), axis=1) / 2, average_count)

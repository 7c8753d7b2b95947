"""What the losses are made of: distances, margins, masks; and what to watch beside the loss.

A loss is computed in two visible steps: `cdist` gives the distances of anchors to the whole batch, a `losses/NAME.py`
turns them into one loss an anchor. The mean over anchors is taken where the training step is.

Column i of the distances is anchor i itself: on one device the batch is its own anchors (B1 = B2); with several, the
anchors of one replica come first and the rest of the batch behind them (B1 < B2).
"""
import tensorflow as tf


def cdist(a, b, metric):
    """Distances between all pairs.

    Args:
        a: [B1, D] float32.
        b: [B2, D] float32.
        metric: 'euclidean', 'sqeuclidean' or 'cityblock'.

    Returns: [B1, B2] float32. `euclidean` is sqrt(sum of squares + 1e-12), whose gradient at 0 is 0 and not NaN.
    """
    differences = a[:, None] - b[None]
    if metric == 'cityblock':
        return tf.reduce_sum(tf.abs(differences), axis=-1)
    squares = tf.reduce_sum(tf.square(differences), axis=-1)
    if metric == 'sqeuclidean':
        return squares
    if metric == 'euclidean':
        return tf.sqrt(squares + 1e-12)
    raise ValueError(f'unknown metric {metric!r}')


def apply_margin(differences, margin):
    """`max(d + m, 0)` for a number m, the smooth `softplus(d)` for 'soft' (paper, section 3.1), `d` for 'none'."""
    if margin == 'soft':
        return tf.nn.softplus(differences)
    if margin == 'none':
        return differences
    return tf.maximum(differences + margin, 0.0)


def pair_masks(anchor_pids, pids):
    """Which pairs are positive (same identity, not the anchor itself) and which negative.

    Args:
        anchor_pids: [B1].
        pids: [B2], the first B1 are the anchors.

    Returns: two bool tensors [B1, B2].
    """
    same = anchor_pids[:, None] == pids[None]
    itself = tf.eye(tf.shape(anchor_pids)[0], tf.shape(pids)[0], dtype=tf.bool)
    return same & ~itself, ~same


def monitor(dists, anchor_pids, pids, losses, k):
    """What to watch during training; none of it has a gradient.

    Args:
        dists: [B1, B2] float32.
        anchor_pids: [B1].
        pids: [B2].
        losses: [B1] float32.
        k: int, the k of precision at k, usually K - 1.

    Returns: dict of scalars float32: `batch_top1` (share of anchors whose nearest other image is a positive),
        `batch_prec_at_k` (share of positives among the k nearest others), `active_count` (losses above 1e-5).
    """
    positive, _ = pair_masks(anchor_pids, pids)
    itself = tf.eye(tf.shape(anchor_pids)[0], tf.shape(pids)[0], dtype=tf.bool)
    _, nearest = tf.math.top_k(-tf.where(itself, dists.dtype.max, dists), k)
    hits = tf.cast(tf.gather(positive, nearest, batch_dims=1), tf.float32)
    return {
        'batch_top1': tf.reduce_mean(hits[:, 0]),
        'batch_prec_at_k': tf.reduce_mean(hits),
        'active_count': tf.reduce_sum(tf.cast(losses > 1e-5, tf.float32)),
    }

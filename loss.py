"""The parts of the losses: distances, margins, masks; and the figures that are watched during training.

A loss is computed in two visible steps: `cdist` returns the distances of anchors to the whole batch, and `losses/NAME.py`
turns them into one loss per anchor. The training step takes the mean over the anchors.

Column i of the distances is anchor i itself. On one device all images of the batch are anchors (B1 = B2). With several
devices the anchors of one replica come first, then the rest of the batch (B1 < B2). A memory of earlier batches comes last.
"""
import tensorflow as tf

from tripletreid import metrics
from tripletreid.errors import InputError


def cdist(a, b, metric):
    """Return the distances between all pairs.

    Args:
        a: [B1, D] float32.
        b: [B2, D] float32.
        metric: one of METRICS.

    Returns: [B1, B2] float32. `euclidean` is sqrt(sum of squares + 1e-12), whose gradient at 0 is 0 and not NaN.
        `cosine` is 1 - the cosine of the angle, as half the squared distance of the embeddings scaled to length one:
        that is never below 0. An embedding of all zeros, which has no direction, is at a distance of 1 to all others.
    """
    metric = metrics.load(metric)
    if metric.is_normalized:
        a, b = tf.math.l2_normalize(a, axis=1), tf.math.l2_normalize(b, axis=1)
    sums = tf.reduce_sum(metric.term(a[:, None] - b[None], tf.math), axis=-1)
    return metric.from_sum(sums + _missing_squares(a, b) if metric.is_normalized else sums, tf.math)


def _missing_squares(a, b):
    """Return 1 - |a|² + 1 - |b|² of embeddings that are too short to have length one, [B1, B2]; 0 for all others.

    Added to |a - b|² = |a|² - 2ab + |b|², it leaves twice 1 - ab: the cosine distance of a zero embedding is 1.
    """
    missing = [1 - tf.reduce_sum(tf.square(each), axis=1) for each in (a, b)]
    missing_a, missing_b = (tf.where(each > 1e-3, each, 0.0) for each in missing)
    return missing_a[:, None] + missing_b


def cdist_to_memory(a, b, metric):
    """Return `cdist` by products, |a|² - 2ab + |b|², for so many b that an array [B1, B2, D] would be too large.

    The mean of b is subtracted from both, so that no large numbers cancel.
    """
    loaded = metrics.load(metric)
    if loaded.kind != 'square':
        return cdist(a, b, metric)
    missing = 0.0
    if loaded.is_normalized:
        a, b = tf.math.l2_normalize(a, axis=1), tf.math.l2_normalize(b, axis=1)
        missing = _missing_squares(a, b)
    mean = tf.stop_gradient(tf.reduce_mean(b, axis=0))
    a, b = a - mean, b - mean
    squares = tf.reduce_sum(tf.square(a), axis=1)[:, None] + tf.reduce_sum(tf.square(b), axis=1)
    squares = tf.maximum(squares - 2 * tf.matmul(a, b, transpose_b=True), 0.0)
    return loaded.from_sum(squares + missing, tf.math)


def mean_over_frames(embs, frames):
    """Average the S adjacent frames of each tracklet: [B·S, D] -> [B, D]."""
    if frames == 1:
        return embs
    return tf.reduce_mean(tf.reshape(embs, [-1, frames, embs.shape[-1]]), axis=1)


def apply_margin(differences, margin):
    """Return `max(d + m, 0)` for a number m, the smooth `softplus(d)` for 'soft' (paper, section 3.1), `d` for 'none'."""
    if margin == 'soft':
        return tf.nn.softplus(differences)
    if margin == 'none':
        return differences
    return tf.maximum(differences + margin, 0.0)


def pair_masks(anchor_pids, pids):
    """Return which pairs are positive (same identity, not the anchor itself) and which are negative.

    Args:
        anchor_pids: [B1].
        pids: [B2], the first B1 are the anchors.

    Returns: two bool tensors [B1, B2].
    """
    same = anchor_pids[:, None] == pids[None]
    itself = tf.eye(tf.shape(anchor_pids)[0], tf.shape(pids)[0], dtype=tf.bool)
    return same & ~itself, ~same


def has_triplet(positive, negative):
    """Return which anchors have a positive and a negative, bool [B1], given the masks of `pair_masks`."""
    return tf.reduce_any(positive, axis=1) & tf.reduce_any(negative, axis=1)


def log_sum_exp(values, mask):
    """Return log Σ exp(values) over the masked values of each row, [B1, B2] -> [B1]; very negative where there are none."""
    return tf.reduce_logsumexp(tf.where(mask, values, -1e9), axis=1)


def number_margin(name, margin):
    """Raise InputError when the margin of the loss `name` is not a number."""
    if margin in ('soft', 'none'):
        raise InputError(f'--loss {name} needs a number as --margin, not {margin}.')


def monitor(dists, anchor_pids, pids, losses, k):
    """Compute the figures to watch during training; they have no gradient.

    Args:
        dists: [B1, B2] float32.
        anchor_pids: [B1].
        pids: [B2].
        losses: [B1] float32.
        k: int, the k of precision at k, usually K - 1.

    Returns: dict of scalars float32: `batch_top1` (fraction of anchors whose nearest other image is a positive),
        `batch_prec_at_k` (fraction of positives among the k nearest others), `active_count` (losses above 1e-5).
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

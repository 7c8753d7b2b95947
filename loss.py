"""What the losses are made of: distances, margins, masks; and what to watch beside the loss.

A loss is computed in two visible steps: `cdist` gives the distances of anchors to the whole batch, a `losses/NAME.py`
turns them into one loss an anchor. The mean over anchors is taken where the training step is.

Column i of the distances is anchor i itself: on one device the batch is its own anchors (B1 = B2); with several, the
anchors of one replica come first and the rest of the batch behind them (B1 < B2). A memory of earlier batches stands
behind all of these.
"""
import math

import tensorflow as tf

from tripletreid import metrics, plugins
from tripletreid.errors import InputError


def cdist(a, b, metric):
    """Distances between all pairs.

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
    of_a, of_b = (tf.where(each > 1e-3, each, 0.0) for each in missing)
    return of_a[:, None] + of_b


def cdist_to_memory(a, b, metric):
    """As `cdist`, for so many b that an array [B1, B2, D] would be too large: by products, |a|² - 2ab + |b|².

    The differences between large numbers that this takes are kept small by taking the mean of b off both.
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
    """The embeddings of tracklets: [B·S, D], S frames of a tracklet adjoining -> [B, D]."""
    if frames == 1:
        return embs
    return tf.reduce_mean(tf.reshape(embs, [-1, frames, embs.shape[-1]]), axis=1)


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


def has_triplet(positive, negative):
    """Which anchors have a positive and a negative, bool [B1], given the masks of `pair_masks`."""
    return tf.reduce_any(positive, axis=1) & tf.reduce_any(negative, axis=1)


def log_sum_exp(values, mask):
    """log Σ exp(values) over what the mask names in each row, [B1, B2] -> [B1]; very negative where that is nothing."""
    return tf.reduce_logsumexp(tf.where(mask, values, -1e9), axis=1)


def number_margin(name, margin):
    """Raises InputError when the margin of the loss `name` is not a number."""
    if margin in ('soft', 'none'):
        raise InputError(f'--loss {name} needs a number as --margin, not {margin}.')


def check_margin(name, margin):
    """Raises InputError when the loss `name` is not defined for a margin; the loss itself tells, on a batch of two."""
    plugins.load('losses', name).loss(tf.zeros([2, 2]), tf.range(2), tf.range(2), margin)


def check_metric(name, metric):
    """Raises InputError when the loss `name` is not defined for a metric: its file names in METRICS those that it is."""
    metrics = getattr(plugins.load('losses', name), 'METRICS', (metric,))
    if metric not in metrics:
        raise InputError(f'--loss {name} is made of the {" or ".join(metrics)} distance, not of {metric}: give --metric '
                         f'{metrics[0]}.')


CLASSIFIER_MARGINS = {'cosface': 0.35, 'arcface': 0.5, 'circle': 0.35}


def classifier_logits(outputs, pids, kind, scale, margin):
    """The logits of a classifier, which has to tell the true identity by a margin.

    With s the cosine of an identity, m the margin and γ the scale, they are γ·s, and
    `cosface` (Wang et al., CVPR 2018, eq. 4): γ(s − m) of the true identity.
    `arcface` (Deng et al., CVPR 2019, eq. 3): γ·cos(θ + m) of the true identity, s being cos(θ); where θ + m is more than
    π and the cosine would rise again, γ(s − m·sin(m)), as the authors' code has it.
    `circle` (Sun et al., CVPR 2020, eq. 6): γ[1 + m − s]₊(s − 1 + m) of the true identity, γ[s + m]₊(s − m) of the others;
    the brackets have no gradient.

    Args:
        outputs: [B, I] float32, cosines; of the kind 'linear' the logits themselves, which stay as they are.
        pids: [B] int32, numbers of the true identities.
        kind: 'linear', 'cosface', 'arcface' or 'circle'.
        scale: float, γ.
        margin: float, m; None: that of CLASSIFIER_MARGINS.

    Returns: [B, I] float32.
    """
    if kind == 'linear':
        return outputs
    margin = CLASSIFIER_MARGINS[kind] if margin is None else margin
    is_true = tf.one_hot(pids, tf.shape(outputs)[1], True, False)
    if kind == 'cosface':
        return scale * tf.where(is_true, outputs - margin, outputs)
    if kind == 'arcface':
        sines = tf.sqrt(tf.maximum(1 - tf.square(outputs), 1e-12))
        turned = outputs * math.cos(margin) - sines * math.sin(margin)
        turned = tf.where(outputs > -math.cos(margin), turned, outputs - margin * math.sin(margin))
        return scale * tf.where(is_true, turned, outputs)
    fixed = tf.stop_gradient(outputs)
    of_true = tf.nn.relu(1 + margin - fixed) * (outputs - (1 - margin))
    of_others = tf.nn.relu(fixed + margin) * (outputs - margin)
    return scale * tf.where(is_true, of_true, of_others)


def cross_entropy(logits, pids, label_smoothing):
    """Softmax cross-entropy of each image with smoothed labels (Szegedy et al., CVPR 2016, section 7).

    Args:
        logits: [B, I] float32, of I identities.
        pids: [B] int32, numbers of the true ones.
        label_smoothing: float, the share of the label that all I identities have equal parts of.

    Returns: [B] float32.
    """
    log_probabilities = tf.nn.log_softmax(logits)
    of_true = tf.gather(log_probabilities, pids, batch_dims=1)
    return -(1 - label_smoothing) * of_true - label_smoothing * tf.reduce_mean(log_probabilities, axis=1)


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

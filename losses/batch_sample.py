"""The plain triplet loss (paper, section 2): per anchor a random positive and a random negative of the batch."""
import tensorflow as tf

from loss import apply_margin, has_triplet, pair_masks


def loss(dists, anchor_pids, pids, margin, seed=(0, 0)):
    """Return the losses of triplets drawn uniformly, as a function of the seed alone; see `losses/batch_hard.py`."""
    positive, negative = pair_masks(anchor_pids, pids)
    keys = tf.random.stateless_uniform(tf.shape(dists), seed)
    drawn_positive = tf.argmax(tf.where(positive, keys, -1.0), axis=1)
    drawn_negative = tf.argmax(tf.where(negative, keys, -1.0), axis=1)
    differences = tf.gather(dists, drawn_positive, batch_dims=1) - tf.gather(dists, drawn_negative, batch_dims=1)
    return tf.where(has_triplet(positive, negative), apply_margin(differences, margin), 0.0)

"""The circle loss as a classifier (Sun et al., CVPR 2020, eq. 6): each cosine is weighted by its distance to its optimum."""
import tensorflow as tf

from classifiers import _cosines

MARGIN = 0.35
LARGEST_MARGIN = 0.5  # Here the optima of the true identity and of the others meet.
layer = _cosines.layer


def logits(cosines, pids, scale, margin):
    """Return γ[1 + m − s]₊(s − 1 + m) for the true identity and γ[s + m]₊(s − m) for the others.

    The brackets have no gradient. See `classifiers/cosface.py` for the arguments.
    """
    fixed = tf.stop_gradient(cosines)
    true_logits = tf.nn.relu(1 + margin - fixed) * (cosines - (1 - margin))
    other_logits = tf.nn.relu(fixed + margin) * (cosines - margin)
    return scale * tf.where(_cosines.is_true(pids, cosines), true_logits, other_logits)

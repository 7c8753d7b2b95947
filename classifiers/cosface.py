"""CosFace (Wang et al., CVPR 2018, eq. 4): the cosine of the true identity is lowered by a margin."""
import tensorflow as tf

from classifiers import _cosines

MARGIN = 0.35
LARGEST_MARGIN = 2.0  # The range of a cosine.
layer = _cosines.layer


def logits(cosines, pids, scale, margin):
    """Return γ(s − m) for the true identity and γ·s for the others.

    Args:
        cosines: [B, I] float32, s.
        pids: [B] int32, numbers of the true identities.
        scale: float, γ.
        margin: float, m.

    Returns: [B, I] float32.
    """
    return scale * tf.where(_cosines.is_true(pids, cosines), cosines - margin, cosines)

"""ArcFace (Deng et al., CVPR 2019, eq. 3): the angle to the true identity is enlarged by a margin."""
import math

import tensorflow as tf

from classifiers import _cosines
from tripletreid.fan_out import fan_out

MARGIN = 0.5
LARGEST_MARGIN = 1.57  # A right angle.
layer = _cosines.layer


def logits(cosines, pids, scale, margin):
    """Return γ·cos(θ + m) for the true identity and γ·s for the others, where s = cos(θ); see `classifiers/cosface.py`.

    Where θ + m exceeds π, the cosine would rise again. There the true identity gets γ(s − m·sin(m)), as in the authors'
    code.
    """
    turning, cosines = fan_out(cosines, 2)
    turned = turning * math.cos(margin) - tf.sqrt(tf.maximum(1 - tf.square(turning), 1e-12)) * math.sin(margin)
    turned = tf.where(cosines > -math.cos(margin), turned, cosines - margin * math.sin(margin))
    return scale * tf.where(_cosines.is_true(pids, cosines), turned, cosines)

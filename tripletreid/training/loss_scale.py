"""Dynamic loss scaling (Micikevicius et al., ICLR 2018, section 3.2), for training in float16."""
import math

import tensorflow as tf


class LossScale:
    """Scales the loss so that the gradients of a float16 net are not rounded to zero.

    A step whose gradients overflow is skipped and halves the scale; 2000 good steps in a row double it. Other precisions
    have the range of float32, and nothing is scaled.

    Attributes:
        variables: dict {name: variable} of its state, for checkpoints.
    """
    good_steps_to_double = 2000

    def __init__(self, precision):
        """Create the state for a value of `--mixed_precision`."""
        self.is_needed = precision == 'float16'
        self.variables = {}
        if self.is_needed:
            self.scale = tf.Variable(2.0 ** 15, dtype=tf.float32, trainable=False)
            self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.variables = {'loss_scale': self.scale, 'loss_scale_good_steps': self.good_steps}

    def scaled(self, loss):
        """Return the loss [] to compute the gradients of."""
        return loss * self.scale if self.is_needed else loss

    def unscaled(self, gradients):
        """Return the gradients, a list, of the loss itself."""
        return [gradient / self.scale for gradient in gradients] if self.is_needed else gradients

    def apply(self, gradient_norm, update):
        """Call `update()`, with float16 only if the norm of the gradients is finite, and adapt the scale.

        Returns: the scale of this step's loss, float32 [].
        """
        if not self.is_needed:
            update()
            return tf.constant(1.0)
        scale_of_step = tf.identity(self.scale)
        finite = tf.math.is_finite(gradient_norm)
        tf.cond(finite, update, lambda: None)
        good_steps = tf.where(finite, self.good_steps + 1, 0)
        doubled = good_steps == self.good_steps_to_double
        scale = tf.where(finite, tf.where(doubled, 2 * self.scale, self.scale), tf.maximum(self.scale / 2, 1.0))
        self.scale.assign(scale)
        self.good_steps.assign(tf.where(doubled, tf.zeros_like(good_steps), good_steps))
        return scale_of_step

    def skipped(self, gradient_norm, scale):
        """Return whether a step was skipped whose gradients had this norm at this scale, two numbers."""
        return self.is_needed and not math.isfinite(gradient_norm) and scale > 1

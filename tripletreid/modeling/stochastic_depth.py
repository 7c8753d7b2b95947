"""Stochastic depth (Huang et al., arXiv 1603.09382): in training, an image skips a residual branch at random.

The random number of an image is a pure function of the run's seed, the step, the branch and the image's place in the batch:
a resumed run draws the same numbers, and several devices draw the same as one (XLA has another generator: a run with
--jit_compile draws other numbers, but always the same ones). The training step passes its number and the images' places;
the network stores nothing.
"""
import threading

import keras
import tensorflow as tf

_THREAD_STATE = threading.local()  # Each replica is traced in a thread of its own.


class Step:
    """Inside such a block, networks are called, and their gradients taken, for some images of a batch at a step.

    Attributes:
        seed: of a stateless generator, int32 [2], another one at each step.
        slots: places of the images in the whole batch, int tensor, one an image.
        batch_size: of the whole batch.
    """

    def __init__(self, seed, slots, batch_size):
        self.seed, self.slots, self.batch_size = seed, slots, batch_size

    def __enter__(self):
        _THREAD_STATE.step = self

    def __exit__(self, *_):
        _THREAD_STATE.step = None


class StochasticDepth(keras.layers.Layer):
    """Zeros with probability `rate` for all of an image, else divided by 1 - rate; not training: as it is.

    Args:
        rate: in [0, 1).
        number: of the branch in the network, so that no two branches draw the same numbers.
    """

    def __init__(self, rate, number, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.rate = rate
        self.number = number

    def call(self, inputs, training=False):
        """Map [B, …] -> the same."""
        step = getattr(_THREAD_STATE, 'step', None)
        if not (training and self.trainable and self.rate and step):
            return inputs
        uniform = tf.random.stateless_uniform([step.batch_size], tf.random.fold_in(step.seed, self.number))
        kept = tf.cast(tf.gather(uniform, step.slots) >= self.rate, inputs.dtype) / (1 - self.rate)
        return inputs * tf.reshape(kept, [-1] + [1] * (len(inputs.shape) - 1))

    def compute_output_shape(self, input_shape):
        return input_shape

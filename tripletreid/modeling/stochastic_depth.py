"""Stochastic depth (Huang et al., arXiv 1603.09382): in training, an image skips a residual branch at random.

What is drawn for an image is a pure function of the run's seed, the step, the branch and the image's place in the batch:
a resumed run draws the same again, and several devices draw what one would (XLA's generator is another one: a run with
--jit_compile draws other numbers, and always these). The training step says which step it is, and of which images; nothing
is kept in the network.
"""
import threading

import keras
import tensorflow as tf

_OF_THREAD = threading.local()  # Each replica is traced in a thread of its own.


class Step:
    """Inside of such a block networks are called, and their gradients taken, for some images of a batch at a step.

    Attributes:
        seed: of a stateless generator, int32 [2], another one at each step.
        slots: places of the images in the whole batch, int tensor, one an image.
        batch_size: of the whole batch.
    """

    def __init__(self, seed, slots, batch_size):
        self.seed, self.slots, self.batch_size = seed, slots, batch_size

    def __enter__(self):
        _OF_THREAD.step = self

    def __exit__(self, *_):
        _OF_THREAD.step = None


class StochasticDepth(keras.layers.Layer):
    """Zeros with probability `rate` for all of an image, else divided by 1 - rate; not training: as it is.

    Args:
        rate: in [0, 1).
        number: of the branch among those of the network, so that no two of them draw the same.
    """

    def __init__(self, rate, number, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.rate = rate
        self.number = number

    def call(self, inputs, training=False):
        """[B, …] -> the same."""
        of_step = getattr(_OF_THREAD, 'step', None)
        if not (training and self.trainable and self.rate and of_step):
            return inputs
        uniform = tf.random.stateless_uniform([of_step.batch_size], tf.random.fold_in(of_step.seed, self.number))
        kept = tf.cast(tf.gather(uniform, of_step.slots) >= self.rate, inputs.dtype) / (1 - self.rate)
        return inputs * tf.reshape(kept, [-1] + [1] * (len(inputs.shape) - 1))

    def compute_output_shape(self, input_shape):
        return input_shape

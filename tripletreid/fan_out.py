"""One tensor for several uses, with gradients that are summed in a fixed order.

TensorFlow sums three or more gradients of a tensor by AddN, which begins with the first one whose memory it may overwrite.
This depends on the progress of other threads, so on a busy machine equal steps differ in the last bits of the sum.
"""
import tensorflow as tf


def fan_out(tensor, count):
    """Return `count` copies of a tensor, one per use; each copy should have at most two uses.

    The gradient is the sum of the gradients of the copies, in their order.
    """
    @tf.custom_gradient
    def copies(tensor):
        return [tf.identity(tensor) for _ in range(count)], lambda *gradients: tf.reduce_sum(tf.stack(gradients), axis=0)

    return copies(tensor)

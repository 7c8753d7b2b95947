"""A linear classifier without bias (Luo et al., arXiv 1903.07071, section 3.6)."""
import keras

MARGIN = LARGEST_MARGIN = None  # A linear classifier has no margin.


def layer(num_identities):
    """Return the layer `classifier`: features [B, F] -> logits [B, I] float32."""
    return keras.layers.Dense(num_identities, use_bias=False, dtype='float32', name='classifier',
                              kernel_initializer=keras.initializers.RandomNormal(stddev=0.001))


def logits(outputs, pids, scale, margin):
    """Return the outputs, which are the logits already."""
    return outputs

"""Global pooling: from a feature map to features."""
import keras

from tripletreid.errors import InputError


def pooled(feature_map, pooling):
    """Pool a feature map: [B, H, W, C] -> [B, C], float32 also under a mixed precision policy.

    Args:
        feature_map: a net's last one.
        pooling: 'avg' or 'gem'.

    Raises:
        InputError: a transformer's.
    """
    if pooling not in ('avg', 'gem'):
        raise InputError(f'This net has no --pooling {pooling}: choose avg or gem.')
    if pooling == 'gem':
        return GeneralisedMean(name='gem', dtype='float32')(feature_map)
    return keras.layers.GlobalAveragePooling2D(dtype='float32')(feature_map)


class GeneralisedMean(keras.layers.Layer):
    """(mean of x^p)^(1/p) over H and W, with one learned p (Radenović et al., arXiv 1711.02512): from mean to maximum.

    Values below 1e-6 count as 1e-6.
    """

    def build(self, _):
        self.p = self.add_weight(name='p', shape=(), initializer=keras.initializers.Constant(3.0))

    def call(self, inputs):
        powers = keras.ops.maximum(inputs, 1e-6) ** self.p
        return keras.ops.mean(powers, axis=(1, 2)) ** (1 / self.p)

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[3]

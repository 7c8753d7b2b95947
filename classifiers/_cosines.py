"""The layer of all classifiers that work with angles."""
import keras
import tensorflow as tf

from tripletreid.fan_out import fan_out


class Cosines(keras.layers.Layer):
    """Cosines of the angles between features [B, F] and a learned vector per identity: [B, I]."""

    def __init__(self, num_identities, **kwargs):
        super().__init__(**kwargs)
        self.num_identities = num_identities

    def build(self, input_shape):
        self.kernel = self.add_weight(name='kernel', shape=(input_shape[-1], self.num_identities),
                                      initializer=keras.initializers.RandomNormal(stddev=0.01))

    def call(self, features):
        features, = fan_out(features, 1)  # One use of the embedding, while normalisation has two.
        return tf.matmul(tf.math.l2_normalize(features, axis=1), tf.math.l2_normalize(self.kernel, axis=0))

    def compute_output_shape(self, input_shape):
        return input_shape[0], self.num_identities


def layer(num_identities):
    """Return the layer `classifier`: [B, F] -> cosines [B, I] float32."""
    return Cosines(num_identities, dtype='float32', name='classifier')


def is_true(pids, cosines):
    """Return the mask of each row's true identity, bool [B, I]."""
    return tf.one_hot(pids, tf.shape(cosines)[1], True, False)

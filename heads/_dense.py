"""What the heads are made of."""
import keras

from tripletreid.modeling.batch_norm import BatchNorm


def hidden(features, units, activation):
    """A dense layer without bias, batch norm, activation: [B, F] -> [B, units]."""
    net = keras.layers.Dense(units, use_bias=False, name='fully_connected')(features)
    net = BatchNorm(name='fully_connected.BatchNorm')(net)
    return keras.layers.Activation(activation)(net)


def emb(features, embedding_dim):
    """The last dense layer: [B, F] -> [B, D], float32 under a mixed precision policy as well."""
    return keras.layers.Dense(embedding_dim, kernel_initializer='orthogonal', dtype='float32', name='emb')(features)


def reduced(features, embedding_dim):
    """The features themselves where there are D of them, else a dense layer: [B, F] -> [B, D], float32 in any case."""
    return keras.ops.cast(features, 'float32') if features.shape[-1] == embedding_dim else emb(features, embedding_dim)


def normalize(emb):
    """[B, D] -> [B, D] of length one."""
    squared_lengths = keras.ops.sum(keras.ops.square(emb), axis=-1, keepdims=True)
    # As tf.nn.l2_normalize. keras.ops.normalize has no gradient at an embedding that is all zeros.
    return emb * keras.ops.rsqrt(keras.ops.maximum(squared_lengths, 1e-12))

"""Layers that several heads share."""
import keras

from tripletreid.modeling.batch_norm import BatchNorm


def hidden(features, units, activation):
    """Apply a dense layer without bias, batch norm and an activation: [B, F] -> [B, units]."""
    net = keras.layers.Dense(units, use_bias=False, name='fully_connected')(features)
    net = BatchNorm(name='fully_connected.BatchNorm')(net)
    return keras.layers.Activation(activation)(net)


def emb(features, embedding_dim):
    """Apply the last dense layer: [B, F] -> [B, D], float32 also under a mixed precision policy."""
    return keras.layers.Dense(embedding_dim, kernel_initializer='orthogonal', dtype='float32', name='emb')(features)


def reduced(features, embedding_dim):
    """Return the features if there are D of them, else apply a dense layer: [B, F] -> [B, D], always float32."""
    return keras.ops.cast(features, 'float32') if features.shape[-1] == embedding_dim else emb(features, embedding_dim)


def normalize(emb):
    """Scale embeddings to length one: [B, D] -> [B, D]."""
    squared_lengths = keras.ops.sum(keras.ops.square(emb), axis=-1, keepdims=True)
    # As tf.nn.l2_normalize. keras.ops.normalize has no gradient at an embedding that is all zeros.
    return emb * keras.ops.rsqrt(keras.ops.maximum(squared_lengths, 1e-12))

"""The head that torchreid calls `fc`: a dense layer with bias, batch norm, ReLU; its output is the embedding."""
import keras

from tripletreid.modeling.batch_norm import BatchNorm

PUBLISHED = ({'fc': 'fc.0', 'fc/BatchNorm': 'fc.1'},)


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, which are one tensor."""
    net = keras.layers.Dense(embedding_dim, kernel_initializer='he_normal', dtype='float32', name='fc')(
        endpoints['model_output'])
    emb = keras.ops.relu(BatchNorm(dtype='float32', name='fc.BatchNorm')(net))
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

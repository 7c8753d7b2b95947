"""LuNet's head (arXiv 1703.07737): a dense layer of 512 with batch norm and leaky ReLU, then the embedding."""
import keras

from heads import _dense


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, which are one tensor."""
    hidden = _dense.hidden(endpoints['model_output'], 512, keras.layers.LeakyReLU(0.3))
    emb = _dense.emb(hidden, embedding_dim)
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

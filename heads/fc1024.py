"""The TriNet's head: a dense layer of 1024 with batch norm and ReLU, then the embedding."""
from heads import _dense


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, which are one tensor."""
    emb = _dense.emb(_dense.hidden(endpoints['model_output'], 1024, 'relu'), embedding_dim)
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

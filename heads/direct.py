"""A dense layer on the features of the net gives the embedding."""
from heads import _dense


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, which are one tensor."""
    emb = _dense.emb(endpoints['model_output'], embedding_dim)
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

"""The embedding is the net's features; for another size than theirs, a dense layer follows."""
from heads import _dense


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, which are one tensor."""
    emb = _dense.reduced(endpoints['model_output'], embedding_dim)
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

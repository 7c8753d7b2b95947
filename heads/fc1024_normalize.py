"""The head `fc1024` with embeddings of length one."""
from heads import _dense, fc1024


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}; the first is not scaled."""
    endpoints = fc1024.head(endpoints, embedding_dim)
    return {**endpoints, 'emb': _dense.normalize(endpoints['emb_raw'])}

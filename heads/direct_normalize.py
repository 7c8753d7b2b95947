"""The head `direct` with embeddings of length one."""
from heads import _dense, direct


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}; the first is not scaled."""
    endpoints = direct.head(endpoints, embedding_dim)
    return {**endpoints, 'emb': _dense.normalize(endpoints['emb_raw'])}

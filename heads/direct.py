"""The embedding is one dense layer away from the net."""
from heads import _dense


def head(endpoints, embedding_dim):
    """{'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, the two being the same."""
    emb = _dense.emb(endpoints['model_output'], embedding_dim)
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

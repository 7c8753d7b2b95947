"""The embedding is the net's features; one of another size than theirs is a dense layer away from them."""
from heads import _dense


def head(endpoints, embedding_dim):
    """{'model_output': [B, F], …} -> {…, 'emb_raw': [B, D], 'emb': [B, D]}, the two being the same."""
    emb = _dense.reduced(endpoints['model_output'], embedding_dim)
    return {**endpoints, 'emb_raw': emb, 'emb': emb}

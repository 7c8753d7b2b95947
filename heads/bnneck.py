"""The neck of the strong baseline (Luo et al., arXiv 1903.07071, section 3.6): a batch norm between two losses.

The metric loss has the features before it, the classifier and the embedding those behind it. It has no offset.
"""
from heads import _dense
from tripletreid.modeling.batch_norm import BatchNorm


def head(endpoints, embedding_dim):
    """{'model_output': [B, F], …} -> {…, 'metric_emb': [B, D], 'emb_raw': [B, D], 'emb': [B, D]}.

    The last two are the same. As in `features`, a dense layer comes first only where D is not F.
    """
    features = _dense.reduced(endpoints['model_output'], embedding_dim)
    emb = BatchNorm(offset=False, dtype='float32', name='bnneck.BatchNorm')(features)
    return {**endpoints, 'metric_emb': features, 'emb_raw': emb, 'emb': emb}

"""The neck of the strong baseline (Luo et al., arXiv 1903.07071, section 3.6): a batch norm between two losses.

The metric loss gets the features before it; the classifier and the embedding get the features after it. Its offset is not
trained: it is 0, or as published weights have it.
"""
from heads import _dense
from tripletreid.modeling.batch_norm import BatchNorm

# fast-reid's of two ages, with a 1×1 convolution before it where the embedding has another size than the features; the
# strong baseline's, which TransReID, PersonViT and CLIP-ReID also have; the two layers of layumi's Person_reID_baseline.
PUBLISHED = ({'emb': 'heads.bottleneck.0', 'bnneck/BatchNorm': 'heads.bottleneck.1'},
             {'bnneck/BatchNorm': 'heads.bottleneck.0'}, {'bnneck/BatchNorm': 'heads.bnneck'},
             {'bnneck/BatchNorm': 'bottleneck'},
             {'emb': 'classifier.add_block.0', 'bnneck/BatchNorm': 'classifier.add_block.1'})


def head(endpoints, embedding_dim):
    """Map {'model_output': [B, F], …} -> {…, 'metric_emb': [B, D], 'emb_raw': [B, D], 'emb': [B, D]}.

    The last two are one tensor. As in `features`, a dense layer comes first only where D is not F.
    """
    features = _dense.reduced(endpoints['model_output'], embedding_dim)
    emb = BatchNorm(offset=False, dtype='float32', name='bnneck.BatchNorm')(features)
    return {**endpoints, 'metric_emb': features, 'emb_raw': emb, 'emb': emb}

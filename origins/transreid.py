"""TransReID, https://github.com/damo-cv/TransReID (MIT), and PersonViT: transformers whose features before the BNNeck count.

Camera and view embeddings are not taken over, nor the local branches of the jigsaw module: the embedding is the global
feature.
"""
HEADS = ('features',)
SETTINGS = {'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return whether a transformer called `base` has a `bottleneck` next to it."""
    return (prefix.endswith('base.') and f'{prefix}patch_embed.proj.weight' in held
            and f'{prefix.removesuffix("base.")}bottleneck.running_mean' in held)

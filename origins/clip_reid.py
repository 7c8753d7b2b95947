"""CLIP-ReID, https://github.com/Syliz517/CLIP-ReID (MIT): CLIP's transformers, trained for persons and vehicles.

It retrieves by the class token before the BNNeck next to its projection. Camera and view embeddings are not taken over.
"""
HEADS = ('features',)
SETTINGS = {'pooling': 'cls_projection', 'gelu': 'quick', 'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return whether a transformer with CLIP's names has a `bottleneck_proj` next to it."""
    return (f'{prefix}class_embedding' in held
            and f'{prefix.removesuffix("image_encoder.")}bottleneck_proj.running_mean' in held)

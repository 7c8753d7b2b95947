"""CLIP, https://github.com/openai/CLIP, and open_clip (both MIT): transformers that learned from pictures and their texts.

OpenAI's weights need the activation `quick`, and so do open_clip's models whose name ends in `-quickgelu`. Weights of LAION,
DataComp and others need --gelu exact, which no file records.
"""
HEADS = ('features',)
SETTINGS = {'pooling': 'projection', 'gelu': 'quick', 'resize': 'bicubic', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return whether the names are CLIP's and no `bottleneck_proj` follows."""
    return (f'{prefix}class_embedding' in held
            and f'{prefix.removesuffix("image_encoder.")}bottleneck_proj.running_mean' not in held)

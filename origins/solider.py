"""SOLIDER, https://github.com/tinyvision/SOLIDER-REID (MIT): Swin transformers, whose features before the BNNeck count."""
HEADS = ('features',)
SETTINGS = {'net_input_height': 384, 'net_input_width': 128, 'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return whether a Swin transformer has SOLIDER's semantic weights."""
    return f'{prefix}semantic_embed_w.0.weight' in held

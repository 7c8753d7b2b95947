"""fast-reid, https://github.com/JDAI-CV/fast-reid (Apache-2.0): ResNets with its `heads`."""
HEADS = ('bnneck', 'features')
SETTINGS = {'resize': 'bicubic', 'jpeg': 'accurate', 'metric': 'cosine', 'last_stride': 1}


def recognises(held, prefix):
    """Return whether the body is a `backbone` next to `heads`."""
    return prefix.endswith('backbone.') and any(name.startswith(_outer(prefix)) for name in held)


def options(held, prefix):
    """Return the pooling, which shows if its exponent was learned."""
    return {'pooling': 'gem'} if f'{_outer(prefix)}pool_layer.p' in held else {}


def _outer(prefix):
    return f'{prefix.removesuffix("backbone.")}heads.'

"""The strong baseline, https://github.com/michuanhaohao/reid-strong-baseline (MIT): ResNets with a BNNeck."""
HEADS = ('bnneck', 'features')
SETTINGS = {'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine', 'last_stride': 1}


def recognises(held, prefix):
    """Return whether a ResNet called `base` has a `bottleneck` next to it."""
    return (prefix.endswith('base.') and f'{prefix}conv1.weight' in held
            and f'{prefix.removesuffix("base.")}bottleneck.running_mean' in held)

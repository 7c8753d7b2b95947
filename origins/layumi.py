"""Person_reID_baseline_pytorch, https://github.com/layumi/Person_reID_baseline_pytorch (MIT): nets with a `ClassBlock`."""
HEADS = ('bnneck', 'features')
# Its test adds the features of the mirror image: --flip_augment --aggregator mean.
SETTINGS = {'resize': 'bicubic', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return whether a `classifier` with a dense layer and a batch norm follows the body."""
    return any(name.endswith('classifier.add_block.1.running_mean') for name in held)

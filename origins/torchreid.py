"""torchreid, https://github.com/KaiyangZhou/deep-person-reid (MIT): OSNets and other nets with the layer `fc`."""
HEADS = ('linear_bn_relu', 'features')
# Its model zoo reports Euclidean distances for most models; on persons of other data sets the cosine is better, as trackers
# use it (23.5 against 21.7 mAP on Market-1501 for OSNet x0.25 of MSMT17).
SETTINGS = {'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine'}


def recognises(held, prefix):
    """Return whether the body is an OSNet or a dense layer with batch norm follows it."""
    return f'{prefix}conv1.conv.weight' in held or f'{prefix}fc.1.running_mean' in held

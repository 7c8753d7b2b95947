"""ResNet-50, version 1, in TF-Slim's layout."""
from nets import _resnet

WEIGHTS = "TF-Slim's resnet_v1_50.ckpt"
STAGES = _resnet.STAGES


def body(input_shape, last_stride=2, pooling='avg'):
    """See `_resnet.slim_body`."""
    return _resnet.slim_body('resnet_v1_50', (3, 4, 6, 3), input_shape, last_stride, pooling)

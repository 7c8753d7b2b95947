"""ResNet-101, version 1, in TF-Slim's layout."""
from nets import _resnet

WEIGHTS = "TF-Slim's resnet_v1_101.ckpt"
STAGES = _resnet.STAGES


def body(input_shape, last_stride=2, pooling='avg'):
    """See `_resnet.slim_body`."""
    return _resnet.slim_body('resnet_v1_101', (3, 4, 23, 3), input_shape, last_stride, pooling)

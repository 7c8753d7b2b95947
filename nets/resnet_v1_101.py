"""ResNet-101, version 1, in TF-Slim's layout."""
from nets import _resnet
from nets._options import LastStride, Pooling

WEIGHTS = "TF-Slim's resnet_v1_101.ckpt"
STAGES = _resnet.STAGES


def body(input_shape, last_stride: LastStride = 2, pooling: Pooling = 'avg'):
    """See `_resnet.slim_body`."""
    return _resnet.slim_body('resnet_v1_101', (3, 4, 23, 3), input_shape, last_stride, pooling)

"""ResNet-50 as torchvision has it (He et al., arXiv 1512.03385, strides as in version 1.5). See `_torch_resnet.body`."""
import functools

from nets import _torch_resnet, _torch_weights

WEIGHTS = "torchvision's resnet50 as .safetensors"
PUBLISHED = _torch_weights
SIGNATURES = ({'conv1.weight': (64, 3, 7, 7), 'layer1.0.bn1.weight': (64,), 'layer3.5.bn3.weight': (1024,)},)
STAGES = _torch_resnet.STAGES

body = functools.partial(_torch_resnet.body, name='resnet50_torch', instance_norm=False)

"""ResNet-50 with half of its first norms instance norms (Pan et al., arXiv 1807.09441: IBN-a). See `_torch_resnet.body`."""
import functools

from nets import _torch_resnet, _torch_weights

WEIGHTS = "resnet50_ibn_a of the authors of IBN-Net as .safetensors"
PUBLISHED = _torch_weights
SIGNATURES = ({'conv1.weight': (64, 3, 7, 7), 'layer1.0.bn1.IN.weight': (32,), 'layer3.5.bn3.weight': (1024,)},)
STAGES = _torch_resnet.STAGES

body = functools.partial(_torch_resnet.body, name='resnet50_ibn', instance_norm=True)

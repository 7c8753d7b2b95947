"""ResNet-50 with half of its first norms instance norms (Pan et al., arXiv 1807.09441: IBN-a). See `_torch_resnet.body`."""
import functools

from nets import _torch_resnet, _torch_weights

WEIGHTS = "resnet50_ibn_a of the authors of IBN-Net as .safetensors"
PUBLISHED = _torch_weights
STAGES = _torch_resnet.STAGES

body = functools.partial(_torch_resnet.body, name='resnet50_ibn', instance_norm=True)

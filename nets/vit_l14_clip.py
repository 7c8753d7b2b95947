"""CLIP's ViT-L/14 (Radford et al., arXiv 2103.00020). See `_vit.py`."""
from nets import _vit, _vit_weights

WEIGHTS = "CLIP's, open_clip's or timm's as .safetensors"
PUBLISHED = _vit_weights
SIGNATURES = _vit_weights.clip_signatures(14, 1024, 24)
STAGES = _vit.stages(24)

body = _vit.Architecture('vit_l14_clip', patch=14, width=1024, heads=16, depth=24, pre_norm=True, projection=768,
                         epsilon=1e-5).body

"""CLIP's ViT-B/16 (Radford et al., arXiv 2103.00020), as CLIP-ReID trains it. See `_vit.py`."""
from nets import _vit, _vit_weights

WEIGHTS = "CLIP's, open_clip's, timm's or CLIP-ReID's as .safetensors"
PUBLISHED = _vit_weights
SIGNATURES = _vit_weights.clip_signatures(16, 768, 12)
STAGES = _vit.stages(12)

body = _vit.Architecture('vit_b16_clip', patch=16, width=768, heads=12, pre_norm=True, projection=512, epsilon=1e-5).body

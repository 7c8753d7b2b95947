"""ViT-S/14, as DINOv2 has it (Oquab et al., arXiv 2304.07193): patches of 14 pixels, LayerScale. See `_vit.py`."""
from nets import _vit, _vit_weights

WEIGHTS = "DINOv2's or timm's .safetensors"
PUBLISHED = _vit_weights
SIGNATURES = _vit_weights.signatures(14, 384, 12)
STAGES = _vit.stages(12)

body = _vit.Architecture('vit_s14', patch=14, width=384, heads=6, layer_scale=True).body

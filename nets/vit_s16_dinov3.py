"""ViT-S/16, as DINOv3 has it (Siméoni et al., arXiv 2508.10104): rotary positions, LayerScale. See `_vit.py`."""
from nets import _vit, _vit_weights

WEIGHTS = "DINOv3's or timm's .safetensors"
PUBLISHED = _vit_weights
SIGNATURES = _vit_weights.signatures(16, 384, 12)[:1]
STAGES = _vit.stages(12)

body = _vit.Architecture('vit_s16_dinov3', patch=16, width=384, heads=6, layer_scale=True, rotary=True, epsilon=1e-5).body

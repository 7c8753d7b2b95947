"""ViT-S/16, a vision transformer (Dosovitskiy et al., arXiv 2010.11929) with patches of 16 pixels. See `_vit.py`."""
from nets import _vit, _vit_weights

WEIGHTS = "an .npz of augreg or big_vision, or timm's, DINO's or PersonViT's .safetensors"
PUBLISHED = _vit_weights
SIGNATURES = _vit_weights.signatures(16, 384, 12)
STAGES = _vit.stages(12)

body = _vit.Architecture('vit_s16', patch=16, width=384, heads=6).body

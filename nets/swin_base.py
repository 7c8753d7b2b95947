"""Swin-B (Liu et al., arXiv 2103.14030) with windows of 7×7. See `_swin.py`."""
from nets import _swin, _swin_weights

WEIGHTS = "timm's, MegaDescriptor's or SOLIDER's .safetensors"
PUBLISHED = _swin_weights
SIGNATURES = _swin_weights.signatures(128, 18)
STAGES = _swin.STAGES

body = _swin.Architecture('swin_base', width=128, heads=(4, 8, 16, 32), depths=(2, 2, 18, 2)).body

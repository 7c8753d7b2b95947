"""Swin-T (Liu et al., arXiv 2103.14030) with windows of 7×7. See `_swin.py`."""
from nets import _swin, _swin_weights

WEIGHTS = "timm's, MegaDescriptor's or SOLIDER's .safetensors"
PUBLISHED = _swin_weights
SIGNATURES = _swin_weights.signatures(96, 6)
STAGES = _swin.STAGES

body = _swin.Architecture('swin_tiny', width=96, heads=(3, 6, 12, 24)).body

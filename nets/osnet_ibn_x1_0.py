"""OSNet x1.0 with instance norm in the first layers (Zhou et al., arXiv 1905.00953), as in torchreid. See `_osnet.body`."""
import functools

from nets import _osnet, _torch_weights

WEIGHTS = "torchreid's osnet_ibn_x1_0 as .safetensors"
PUBLISHED = _torch_weights
CHANNELS = (64, 256, 384, 512)
SIGNATURES = _osnet.signatures(CHANNELS, 'conv2.0.IN.weight')
STAGES = _osnet.STAGES

body = functools.partial(_osnet.body, name='osnet_ibn_x1_0', channels=CHANNELS, norms=_osnet.IBN)

"""OSNet x1.0 (Zhou et al., arXiv 1905.00953), as in torchreid. See `_osnet.body`."""
import functools

from nets import _osnet, _torch_weights

WEIGHTS = "torchreid's osnet_x1_0 as .safetensors"
PUBLISHED = _torch_weights
CHANNELS = (64, 256, 384, 512)
SIGNATURES = _osnet.signatures(CHANNELS)
STAGES = _osnet.STAGES

body = functools.partial(_osnet.body, name='osnet_x1_0', channels=CHANNELS)

"""OSNet x0.75 (Zhou et al., arXiv 1905.00953), with three quarters of the channels, as in torchreid. See `_osnet.body`."""
import functools

from nets import _osnet, _torch_weights

WEIGHTS = "torchreid's osnet_x0_75 as .safetensors"
PUBLISHED = _torch_weights
CHANNELS = (48, 192, 288, 384)
SIGNATURES = _osnet.signatures(CHANNELS)
STAGES = _osnet.STAGES

body = functools.partial(_osnet.body, name='osnet_x0_75', channels=CHANNELS)

"""OSNet x0.5 (Zhou et al., arXiv 1905.00953), with half of the channels, as in torchreid. See `_osnet.body`."""
import functools

from nets import _osnet, _torch_weights

WEIGHTS = "torchreid's osnet_x0_5 as .safetensors"
PUBLISHED = _torch_weights
CHANNELS = (32, 128, 192, 256)
SIGNATURES = _osnet.signatures(CHANNELS)
STAGES = _osnet.STAGES

body = functools.partial(_osnet.body, name='osnet_x0_5', channels=CHANNELS)

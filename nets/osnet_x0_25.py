"""OSNet x0.25 (Zhou et al., arXiv 1905.00953), with a quarter of the channels, as in torchreid. See `_osnet.body`."""
import functools

from nets import _osnet, _torch_weights

WEIGHTS = "torchreid's osnet_x0_25 as .safetensors"
PUBLISHED = _torch_weights
CHANNELS = (16, 64, 96, 128)
SIGNATURES = _osnet.signatures(CHANNELS)
STAGES = _osnet.STAGES

body = functools.partial(_osnet.body, name='osnet_x0_25', channels=CHANNELS)

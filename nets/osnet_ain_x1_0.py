"""OSNet-AIN x1.0 (Zhou et al., arXiv 1910.06827), for cameras that the training did not see. See `_osnet.body`."""
import functools

from nets import _osnet, _torch_weights

WEIGHTS = "torchreid's osnet_ain_x1_0 as .safetensors"
PUBLISHED = _torch_weights
CHANNELS = (64, 256, 384, 512)
SIGNATURES = _osnet.signatures(CHANNELS, 'conv2.0.IN.weight')
STAGES = _osnet.STAGES

body = functools.partial(_osnet.body, name='osnet_ain_x1_0', channels=CHANNELS, norms=_osnet.AIN)

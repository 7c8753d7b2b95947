"""Options that several nets share, as annotations of keywords of `body`: values and help.

An annotated keyword of a `body` is an option of that net and a flag of the same name; the annotation is
`Annotated[type or Literal choices, help]`. A keyword without an annotation is not an option.
"""
from typing import Annotated, Literal

LastStride = Annotated[Literal[1, 2], 'stride of the last stage of a ResNet (default: 2)']
Pooling = Annotated[Literal['avg', 'gem'], 'global pooling of a convolutional net: average, or generalised mean with a '
                    'learned exponent (default: avg)']
Pixels = Annotated[Literal['imagenet', 'half', 'clip'], 'scaling of pixels, for nets that leave it open: mean 0 and '
                   "variance 1 over ImageNet, -1 to 1, or by CLIP's mean and variance (default: as the initial checkpoint "
                   'needs; else half for transformers, imagenet for others)']

"""Options that several nets share, as annotations of keywords of `body`: values and help.

An annotated keyword of a `body` is an option of that net and a flag of the same name; the annotation is
`Annotated[type or Literal choices, help]`. A keyword without an annotation is not an option.
"""
from typing import Annotated, Literal

from tripletreid.argument_types import fraction, non_negative_int, positive_int

LastStride = Annotated[Literal[1, 2], 'stride of the last stage of a ResNet (default: 2)']
Pooling = Annotated[Literal['avg', 'gem'], 'global pooling of a convolutional net: average, or generalised mean with a '
                    'learned exponent (default: avg)']
Windows = Annotated[Literal['timm', 'solider'], 'windows of a Swin transformer at the borders of feature maps, as the code '
                    'base of its weights has them (default: as the initial checkpoint needs; else timm)']
Pixels = Annotated[Literal['imagenet', 'half', 'clip'], 'scaling of pixels, for nets that leave it open: mean 0 and '
                   "variance 1 over ImageNet, -1 to 1, or by CLIP's mean and variance (default: as the initial checkpoint "
                   'needs; else half for transformers, imagenet for others)']

# The options of the transformers.
TokenPooling = Annotated[Literal['avg', 'cls', 'map', 'projection', 'cls_projection'], 'pooling of a transformer: mean of '
                         "the patches, class token, multi-head attention pooling, CLIP's projection of the class token, or "
                         'class token and projection (default: cls)']
PatchStride = Annotated[positive_int, 'stride of the patches of a transformer (default: the size of a patch)']
DropPath = Annotated[fraction, 'stochastic depth of a transformer: probability of skipping the last branches of an image, '
                     'lower for earlier ones (default: 0)']
ClassToken = Annotated[Literal['yes', 'no'], 'whether a transformer has a class token (default: as the initial checkpoint; '
                       'else yes, except with --pooling map)']
Registers = Annotated[non_negative_int, 'register tokens of a transformer (default: as the initial checkpoint; else 0)']
Gelu = Annotated[Literal['exact', 'tanh', 'quick'], 'GELU of a transformer: exact, the tanh approximation of JAX, or '
                 "OpenAI's sigmoid (default: as the initial checkpoint needs; else exact)"]

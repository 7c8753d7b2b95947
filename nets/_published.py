"""How the names and shapes of weights in files of others become those of variables here."""
import re
from typing import Callable, NamedTuple

import numpy as np


class Source(NamedTuple):
    """What a variable is made of: names of arrays in a file, and function (shape of the variable, *arrays) -> value."""
    names: tuple
    convert: Callable


def prefix_of(held, name, pattern):
    """What stands in front of a name in a file, such as 'module.' or 'params/'; '' also where the name is not there.

    Args:
        held: names in the file.
        name: of an array that every such file has.
        pattern: regular expression of the prefixes that are known. The shortest is taken, should there be several.
    """
    found = [each.removesuffix(name) for each in held if each.endswith(name)]
    return min((prefix for prefix in found if re.fullmatch(pattern, prefix)), key=len, default='')


def as_it_is(shape, array):
    """An array whose axes have the order of the variable's, though perhaps with ones more."""
    return array.reshape(shape)


def from_torch(shape, array):
    """PyTorch has the outputs first: [out, in] -> [in, out], [out, in, h, w] -> [h, w, in, out]; or a vector."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array.reshape(shape)


def resized(grid, height, width):
    """A grid [h, w, C] of position embeddings for another number of patches: [height, width, C] float32.

    Bicubic with antialiasing, as timm resamples them: Keys's kernel with a = -0.5, stretched where the grid shrinks, on
    half-pixel centres (PyTorch's interpolate with align_corners=False).
    """
    rows, columns = _resize_weights(grid.shape[0], height), _resize_weights(grid.shape[1], width)
    return np.einsum('ah,bw,hwc->abc', rows, columns, np.float64(grid), optimize=True).astype(np.float32)


def _resize_weights(inputs, outputs):
    """Float64 [outputs, inputs], whose rows sum to one."""
    stretch = max(inputs / outputs, 1.0)
    centres = (np.arange(outputs) + 0.5) * (inputs / outputs)
    distances = abs(np.arange(inputs) + 0.5 - centres[:, None]) / stretch
    near = (1.5 * distances - 2.5) * distances ** 2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    weights = np.where(distances < 1, near, np.where(distances < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)

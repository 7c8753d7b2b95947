"""Conversions of arrays in published files that several layouts share."""
import numpy as np


def as_it_is(shape, array):
    """Reshape an array whose axes have the order of the variable, perhaps with additional axes of length one."""
    return array.reshape(shape)


def resized(grid, height, width):
    """Resample a grid [h, w, C] of position embeddings for another number of patches: [height, width, C] float32.

    Bicubic with antialiasing, as timm resamples them: Keys's kernel with a = -0.5, stretched where the grid shrinks, on
    half-pixel centres (PyTorch's interpolate with align_corners=False).
    """
    rows, columns = _resize_weights(grid.shape[0], height), _resize_weights(grid.shape[1], width)
    return np.einsum('ah,bw,hwc->abc', rows, columns, np.float64(grid), optimize=True).astype(np.float32)


def _resize_weights(inputs, outputs):
    """Return the weights of the inputs for each output, float64 [outputs, inputs]; rows sum to one."""
    stretch = max(inputs / outputs, 1.0)
    centres = (np.arange(outputs) + 0.5) * (inputs / outputs)
    distances = abs(np.arange(inputs) + 0.5 - centres[:, None]) / stretch
    near = (1.5 * distances - 2.5) * distances ** 2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    weights = np.where(distances < 1, near, np.where(distances < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)

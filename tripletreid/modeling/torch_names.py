"""The names and the layout of PyTorch's weights, as variables with TensorFlow 1 names."""
from typing import Callable, NamedTuple

import numpy as np

KINDS = {'weights': 'weight', 'depthwise_weights': 'weight', 'biases': 'bias', 'gamma': 'weight', 'beta': 'bias',
         'moving_mean': 'running_mean', 'moving_variance': 'running_var'}


class Source(NamedTuple):
    """The arrays of a file that a variable is made of, and a function (shape of the variable, *arrays) -> value."""
    names: tuple
    convert: Callable


# The source of a variable that a file skips because it is zero.
ZEROS = Source((), lambda shape: np.zeros(shape, np.float32))


def from_torch(shape, array):
    """Reorder axes, since PyTorch has the outputs first: [out, in] -> [in, out], [out, in, h, w] -> [h, w, in, out].

    A 1×1 convolution becomes a dense layer where the variable has two axes; vectors stay as they are.
    """
    if array.ndim == 4 and len(shape) == 2:
        array = array.reshape(array.shape[:2])
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array.reshape(shape)

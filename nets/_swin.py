"""Swin transformers (Liu et al., arXiv 2103.14030): attention in windows, which every second block shifts.

Precisions are as in `_vit`.
"""
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nets import _pooling, _vit
from nets._applications import PIXELS
from nets._options import DropPath, Pixels, Pooling, Windows
from tripletreid.errors import InputError

WINDOW, EPSILON = 7, 1e-5
STAGES = (r'\w+/patches', *(rf'\w+/layer_{number}/' for number in (1, 2, 3, 4)))


class Architecture(NamedTuple):
    """The settings of a Swin transformer that are not options, and its `body`.

    name: of the net, and TF1 scope of its variables.
    width: of the first stage; each stage doubles it. heads, depths: of the stages.
    """
    name: str
    width: int
    heads: tuple
    depths: tuple = (2, 2, 6, 2)

    def body(self, input_shape, pooling: Pooling = 'avg', *, windows: Windows = 'timm', drop_path: DropPath = 0.0,
             pixels: Pixels = 'half'):
        """Build a Swin transformer with patches of 4×4 pixels and windows of 7×7.

        Args:
            input_shape: (H, W, 3). Rows and columns after the last complete patch are ignored.
            pooling: of the last feature map: 'avg' or 'gem'.
            windows: see `arrangement`.
            drop_path: the rate of stochastic depth in the last block; it rises from 0 in the first.
            pixels: the normalisation, see `_applications.PIXELS`.

        Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'features': [B, h, w, F], 'model_output': [B, F]}.

        Raises:
            InputError: no fixed size, or one without a patch, or a rate that is not a probability.
        """
        name = self.name
        if None in input_shape or min(input_shape[:2]) < 4:
            raise InputError(f'{name} takes images of one size, 4x4 pixels or larger: --crop_augment avgpool is not for it.')
        _vit.check_drop_path(drop_path)
        images = keras.Input(input_shape, name='images')
        net = keras.layers.Conv2D(self.width, 4, 4, kernel_initializer=_vit._normal(), name=f'{name}.patches')(
            PIXELS[pixels](images))
        net = _vit.LayerNorm(EPSILON, name=f'{name}.patches_norm')(net)
        rates = iter(np.linspace(0, drop_path, sum(self.depths)).tolist())
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads), start=1):
            if stage > 1:
                net = _merged(net, f'{name}.layer_{stage}')
            for place in range(depth):
                number = sum(self.depths[:stage - 1]) + place
                net = WindowBlock(next(rates), number, heads, shifted=place % 2 == 1, windows=windows,
                                  name=f'{name}.layer_{stage}.block_{place + 1}')(net)
        features = _vit.LayerNorm(EPSILON, name=f'{name}.norm')(net)
        return keras.Model(images, {'features': features, 'model_output': _pooling.pooled(features, pooling)}, name=name)


def _merged(net, name):
    """Merge 2×2 neighbours: [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, 2C] float32; their order is column by column.

    The bias is for SOLIDER's weights; other weights do not have it, so it is 0.
    """
    _, height, width, channels = net.shape
    net = keras.ops.pad(net, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    height, width = -(-height // 2), -(-width // 2)
    net = keras.ops.transpose(keras.ops.reshape(net, (-1, height, 2, width, 2, channels)), (0, 1, 3, 4, 2, 5))
    net = _vit.LayerNorm(EPSILON, name=f'{name}.merge_norm')(keras.ops.reshape(net, (-1, height, width, 4 * channels)))
    return keras.ops.cast(_vit._dense(2 * channels, f'{name}.merge')(net), 'float32')


class WindowBlock(_vit.Block):
    """A transformer's block whose tokens attend to others in their window: [B, H, W, C] float32 -> the same.

    Args:
        drop_path: rate of stochastic depth.
        number: of the block, 0-based.
        heads: of the attention.
        shifted: whether windows are shifted by half their side.
        windows: see `arrangement`.
    """

    def __init__(self, drop_path, number, heads, *, shifted, windows, **kwargs):
        super().__init__(drop_path, number, heads=heads, gelu='exact', layer_scale=False, epsilon=EPSILON, rotations=None,
                         **kwargs)
        self.shifted, self.windows = shifted, windows

    def build(self, input_shape):
        super().build(input_shape)
        self.positions = self.add_weight(name='relative_positions', shape=((2 * WINDOW - 1) ** 2, self.heads),
                                         dtype='float32', initializer=_vit._normal())

    def attend(self, rows, shape):
        _, height, width, channels = shape
        sides, shifts = arrangement(height, width, self.shifted, self.windows)
        padded = [-(-size // side) * side for size, side in zip((height, width), sides)]
        shifts_padding = self.windows == 'solider'
        grid = tf.reshape(rows, [-1, height, width, channels])
        grid = grid if shifts_padding else _rolled(grid, *shifts)
        grid = tf.pad(grid, [[0, 0], [0, padded[0] - height], [0, padded[1] - width], [0, 0]])
        grid = _rolled(grid, *shifts) if shifts_padding else grid
        split = [padded[0] // sides[0], sides[0], padded[1] // sides[1], sides[1]]
        grid = tf.transpose(tf.reshape(grid, [-1, *split, channels]), [0, 1, 3, 2, 4, 5])

        bias = tf.transpose(tf.gather(self.positions, _offsets(*sides)), [2, 0, 1]) + _mask(padded, sides, shifts)[:, None]
        attended = self.attend_to_all(tf.reshape(grid, [-1, channels]), sides[0] * sides[1], bias)

        grid = tf.reshape(attended, [-1, split[0], split[2], sides[0], sides[1], channels])
        grid = tf.reshape(tf.transpose(grid, [0, 1, 3, 2, 4, 5]), [-1, *padded, channels])
        if shifts_padding:
            grid = _rolled(grid, *(size - shift for size, shift in zip(padded, shifts)))[:, :height, :width]
        else:
            grid = grid[:, :height, :width]
            grid = _rolled(grid, *(size - shift for size, shift in zip((height, width), shifts)))
        return tf.reshape(grid, [-1, channels])


def arrangement(height, width, shifted, windows):
    """Return the sides of windows and their shifts, ((h, w), (down, right)).

    timm (and the authors) crop a window that is larger than the feature map, and do not shift along a side that one window
    covers. SOLIDER pads the feature map and shifts it with its padding. For cropped windows timm resamples the biases of
    relative positions; here each offset keeps its bias.
    """
    if windows == 'solider':
        return (WINDOW, WINDOW), (WINDOW // 2 * shifted,) * 2
    return (tuple(min(size, WINDOW) for size in (height, width)),
            tuple(WINDOW // 2 * shifted if size > WINDOW else 0 for size in (height, width)))


def _rolled(grid, rows, columns):
    """Move the first rows and columns to the end: [B, H, W, C] -> the same. TFLite has no operation for it."""
    grid = tf.concat([grid[:, rows:], grid[:, :rows]], axis=1) if rows % grid.shape[1] else grid
    return tf.concat([grid[:, :, columns:], grid[:, :, :columns]], axis=2) if columns % grid.shape[2] else grid


def _offsets(height, width):
    """Return the row of the table of relative positions for each pair of tokens of a window, int [h·w, h·w]."""
    rows, columns = (each.reshape(-1) for each in np.mgrid[:height, :width])
    down, right = (each[:, None] - each + WINDOW - 1 for each in (rows, columns))
    return down * (2 * WINDOW - 1) + right


def _mask(padded, sides, shifts):
    """Return -100 for tokens of a window that were not neighbours before the shift, else 0: float32 [windows, h·w, h·w]."""
    regions = [np.digitize(np.arange(size), [size - side, size - shift]) if shift else np.zeros(size, int)
               for size, side, shift in zip(padded, sides, shifts)]
    regions = 3 * regions[0][:, None] + regions[1]
    regions = regions.reshape(padded[0] // sides[0], sides[0], -1, sides[1]).swapaxes(1, 2).reshape(-1, sides[0] * sides[1])
    return np.float32(-100) * (regions[:, :, None] != regions[:, None])

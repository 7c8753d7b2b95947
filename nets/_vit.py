"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929): pre-norm, with position embeddings, learned or rotary.

Under a 16 bit policy the sums along the depth, norms and softmax stay float32, as in PyTorch's autocast.
"""
import functools
import math
from typing import NamedTuple

import keras
import tensorflow as tf

from nets import _rotary
from nets._applications import PIXELS
from nets._options import ClassToken, DropPath, Gelu, PatchStride, Pixels, Registers, TokenPooling
from tripletreid.errors import InputError
from tripletreid.modeling.stochastic_depth import StochasticDepth

EPSILON = 1e-6
# The exact one as oneDNN's fused product of matrices, bias and activation is found in a graph.
GELUS = {'exact': lambda x: 0.5 * x * (1 + tf.math.erf(x * math.sqrt(0.5))),
         'tanh': functools.partial(tf.nn.gelu, approximate=True),
         'quick': lambda x: x * tf.sigmoid(1.702 * x)}
POOLINGS = ('avg', 'cls', 'map', 'projection', 'cls_projection')


def stages(depth):
    """Return the `STAGES` of a transformer of some number of blocks."""
    return (r'\w+/(patches|tokens|pre_norm)/', *(rf'\w+/block_{number}/' for number in range(1, depth + 1)))


class Architecture(NamedTuple):
    """The settings of a vision transformer that are not options, and its `body`.

    name: of the net, and TF1 scope of its variables.
    patch: side of a patch. width: F. heads: of each attention. depth: number of blocks.
    layer_scale: whether the output of a branch is scaled, by a factor per channel (Touvron et al., arXiv 2103.17239).
    pre_norm: whether a norm precedes the first block; patches have no bias then (CLIP, arXiv 2103.00020).
    projection: number of features of the projection of the class token; None: there is no projection.
    rotary: whether attention rotates queries and keys by their position, in place of position embeddings.
    epsilon: of the norms.
    """
    name: str
    patch: int
    width: int
    heads: int
    depth: int = 12
    layer_scale: bool = False
    pre_norm: bool = False
    projection: int | None = None
    rotary: bool = False
    epsilon: float = EPSILON

    def body(self, input_shape, *, pooling: TokenPooling = 'cls', patch_stride: PatchStride = None,
             drop_path: DropPath = 0.0, class_token: ClassToken = None, registers: Registers = 0, gelu: Gelu = 'exact',
             pixels: Pixels = 'half'):
        """Build a vision transformer.

        Args:
            input_shape: (H, W, 3). Rows and columns after the last complete patch are ignored.
            pooling: the features: 'cls' (the class token), 'avg' (the mean of the patches), 'map' (a head that attends to
                the patches, as SigLIP's), 'projection' or 'cls_projection' (the class token before and after its
                projection, which CLIP-ReID retrieves by).
            patch_stride: from patch to patch; None: as far as a patch is wide (less: He et al., arXiv 2102.04378).
            drop_path: the rate of stochastic depth in the last block; it rises from 0 in the first.
            class_token: 'yes' or 'no'; None: there is one but with 'map'.
            registers: number of additional tokens, whose outputs are not read (Darcet et al., arXiv 2309.16588).
            gelu: 'exact', or 'tanh' or 'quick' for its approximations by tanh and sigmoid.
            pixels: the normalisation, see `_applications.PIXELS`.

        Returns: keras.Model, images [B, H, W, 3] of RGB 0..255 -> {'patches': [B, h, w, F], 'patch_mean': [B, F],
            'class_token': [B, F] where there is one, 'model_output': [B, F]}.

        Raises:
            InputError: no fixed size, or one smaller than a patch, or options that contradict each other.
        """
        name, patch, width = self.name, self.patch, self.width
        stride = patch_stride or patch
        class_token = class_token or ('no' if pooling == 'map' else 'yes')
        _check(input_shape, name, patch, stride, drop_path)
        _check_pooling(name, pooling, class_token, self.projection)
        images = keras.Input(input_shape, name='images')
        net = keras.layers.Conv2D(width, patch, stride, kernel_initializer=_normal(), use_bias=not self.pre_norm,
                                  name=f'{name}.patches')(PIXELS[pixels](images))
        height, columns = net.shape[1:3]
        tokens = (class_token == 'yes') + registers
        net = Tokens(class_token == 'yes', registers, not self.rotary, name=f'{name}.tokens')(net)
        if self.pre_norm:
            net = LayerNorm(self.epsilon, name=f'{name}.pre_norm')(net)
        settings = {'heads': self.heads, 'gelu': gelu, 'layer_scale': self.layer_scale, 'epsilon': self.epsilon,
                    'rotations': _rotary.rotations(tokens, height, columns, width // self.heads) if self.rotary else None}
        for number in range(self.depth):
            rate = drop_path * number / max(1, self.depth - 1)
            net = Block(rate, number, **settings, name=f'{name}.block_{number + 1}')(net)
        net = LayerNorm(self.epsilon, name=f'{name}.norm')(net)
        patches = net[:, tokens:]
        outputs = {'patches': keras.layers.Reshape((height, columns, width), dtype='float32')(patches),
                   'patch_mean': keras.ops.mean(patches, axis=1)}
        if class_token == 'yes':
            outputs['class_token'] = net[:, 0]
        if pooling == 'map':
            outputs['model_output'] = MapHead(self.heads, gelu, name=f'{name}.map_head')(patches)
        elif pooling in ('projection', 'cls_projection'):
            outputs['model_output'] = _projected(outputs['class_token'], self.projection, pooling, name)
        else:
            outputs['model_output'] = outputs['class_token' if pooling == 'cls' else 'patch_mean']
        return keras.Model(images, outputs, name=name)


def _projected(features, units, pooling, name):
    projected = keras.layers.Dense(units, use_bias=False, kernel_initializer=_normal(features.shape[-1] ** -0.5),
                                   dtype='float32', name=f'{name}.projection')(features)
    return projected if pooling == 'projection' else keras.ops.concatenate([features, projected], axis=-1)


def _check(input_shape, name, patch, stride, drop_path):
    if None in input_shape:
        raise InputError(f'{name} has position embeddings, so that it takes images of the size only that it was trained '
                         f'with: --crop_augment avgpool is not for it.')
    if min(input_shape[:2]) < patch:
        raise InputError(f'{name} takes no images of {input_shape[0]}x{input_shape[1]}: a patch is {patch}x{patch}.')
    if stride > patch:
        raise InputError(f'--patch_stride {stride} would leave gaps between patches of {patch}x{patch}.')
    check_drop_path(drop_path)


def check_drop_path(rate):
    """Raise InputError for a rate of stochastic depth that is not a probability below 1."""
    if not 0 <= rate < 1:
        raise InputError(f'--drop_path {rate:g} is not from 0 to below 1.')


def _check_pooling(name, pooling, class_token, projection):
    choices = POOLINGS if projection else POOLINGS[:3]
    if pooling not in choices:
        raise InputError(f'The net {name} has no --pooling {pooling}: choose {", ".join(choices[:-1])} or {choices[-1]}.')
    if pooling not in ('avg', 'map') and class_token == 'no':
        raise InputError(f'--pooling {pooling} needs the class token, which {name} does not have with --class_token no.')


def _normal(stddev=0.02):
    # One for each layer: Keras's initialisers give the same numbers every time they are called.
    return keras.initializers.RandomNormal(stddev=stddev)


def _dense(units, name):
    return keras.layers.Dense(units, kernel_initializer=_normal(), name=name)


class Tokens(keras.layers.Layer):
    """The sequence that a transformer works on: [B, h, w, C] -> [B, tokens + h·w, C] float32.

    In front are class token and registers, if any. Patches have their position added, the tokens need none: a
    position that was learned for a token is part of it.
    """

    def __init__(self, class_token, registers, positions=True, **kwargs):
        super().__init__(dtype='float32', **kwargs)
        self.has_class_token, self.registers_count, self.has_positions = class_token, registers, positions

    def build(self, input_shape):
        _, height, width, channels = input_shape
        if self.has_class_token:
            self.class_token = self.add_weight(name='class_token', shape=(channels,), initializer=_normal(1e-6))
        if self.registers_count:
            self.registers = self.add_weight(name='registers', shape=(self.registers_count, channels),
                                             initializer=_normal(1e-6))
        if self.has_positions:
            self.positions = self.add_weight(name='positions', shape=(height, width, channels), initializer=_normal())

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        patches = tf.reshape(inputs + self.positions if self.has_positions else inputs, [-1, height * width, channels])
        tokens = [self.class_token[None]] if self.has_class_token else []
        tokens += [tf.convert_to_tensor(self.registers)] if self.registers_count else []
        if not tokens:
            return patches
        tokens = tf.concat(tokens, axis=0)
        return tf.concat([tf.tile(tokens[None], [tf.shape(patches)[0], 1, 1]), patches], axis=1)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return batch, self.has_class_token + self.registers_count + height * width, channels


class LayerNorm(keras.layers.Layer):
    """Mean 0 and variance 1 in each row of […, C], then a learned scale and offset; float32 in any case."""

    def __init__(self, epsilon=EPSILON, **kwargs):
        super().__init__(dtype='float32', **kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.gamma = self.add_weight(name='gamma', shape=input_shape[-1:], initializer='ones')
        self.beta = self.add_weight(name='beta', shape=input_shape[-1:], initializer='zeros')

    def call(self, inputs):
        mean, variance = tf.nn.moments(inputs, -1, keepdims=True)
        return (inputs - mean) * tf.math.rsqrt(variance + self.epsilon) * self.gamma + self.beta

    def compute_output_shape(self, input_shape):
        return input_shape


class Block(keras.layers.Layer):
    """Attention and a perceptron of two layers, each with a norm before it and a shortcut: [B, T, C] float32 -> the same.

    Args:
        drop_path: rate of stochastic depth.
        number: of the block, 0-based.
        heads: of the attention.
        gelu: a choice of GELUS.
        layer_scale: whether the output of both branches is scaled.
        epsilon: of the norms.
        rotations: (sines, cosines) of the positions, or None.
    """

    def __init__(self, drop_path, number, *, heads, gelu, layer_scale, epsilon, rotations, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.heads, self.gelu, self.layer_scale = heads, gelu, layer_scale
        self.epsilon, self.rotations = epsilon, rotations
        self.drops = [StochasticDepth(drop_path, 2 * number + branch, name=f'drop{branch + 1}') for branch in (0, 1)]

    def build(self, input_shape):
        channels = input_shape[-1]
        self.norms = [LayerNorm(self.epsilon, name=f'norm{branch}') for branch in (1, 2)]
        self.qkv, self.proj = _dense(3 * channels, 'qkv'), _dense(channels, 'proj')
        self.fc1, self.fc2 = _dense(4 * channels, 'fc1'), _dense(channels, 'fc2')
        for layer in (*self.norms, self.qkv, self.proj, self.fc1):
            layer.build((None, channels))
        self.fc2.build((None, 4 * channels))
        if self.layer_scale:
            self.scales = [self.add_weight(name=f'scale{branch}', shape=(channels,), dtype='float32',
                                           initializer=keras.initializers.Constant(1e-5)) for branch in (1, 2)]

    def call(self, inputs, training=False):
        shape = tf.shape(inputs)
        # A row is a token: a product of two matrices is faster, in both passes, than a batch times a matrix.
        rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
        rows += self._branch(0, self.proj(self.attend(self.norms[0](rows), inputs.shape)), shape, training)
        hidden = GELUS[self.gelu](self.fc1(self.norms[1](rows)))
        rows += self._branch(1, self.fc2(hidden), shape, training)
        return tf.reshape(rows, shape)

    def attend(self, rows, shape):
        """Let all tokens of an image attend to each other: rows [B·T, C] of inputs of a shape -> the same."""
        return self.attend_to_all(rows, shape[1])

    def attend_to_all(self, rows, tokens, bias=None):
        """Let groups of tokens attend to each other: rows [groups · tokens, C] -> the same; see `attention` for the bias."""
        qkv = tf.reshape(self.qkv(rows), [-1, tokens, 3, self.heads, rows.shape[-1] // self.heads])
        queries, keys, values = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
        if self.rotations:
            queries, keys = (_rotary.rotated(each, *self.rotations) for each in (queries, keys))
        attended = attention(queries, keys, values, bias)
        return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), tf.shape(rows))

    def _branch(self, number, rows, shape, training):
        """Return the output of a branch: rows [B·T, C] -> [B·T, C] float32."""
        rows = tf.cast(rows, tf.float32)
        if self.layer_scale:
            rows *= self.scales[number]
        if self.drops[number].rate:
            rows = tf.reshape(self.drops[number](tf.reshape(rows, shape), training=training), tf.shape(rows))
        return rows

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor(inputs.shape, 'float32')


class MapHead(keras.layers.Layer):
    """Multi-head attention pooling (Zhai et al., arXiv 2106.04560): [B, N, C] -> [B, C] float32.

    A learned query attends to the patches; a perceptron of two layers with a shortcut follows.
    """

    def __init__(self, heads, gelu, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.heads, self.gelu = heads, gelu

    def build(self, input_shape):
        channels = input_shape[-1]
        self.probe = self.add_weight(name='probe', shape=(channels,), dtype='float32', initializer=_normal(channels ** -0.5))
        self.norm = LayerNorm(name='norm')
        self.q, self.kv, self.proj = _dense(channels, 'q'), _dense(2 * channels, 'kv'), _dense(channels, 'proj')
        self.fc1, self.fc2 = _dense(4 * channels, 'fc1'), _dense(channels, 'fc2')
        for layer in (self.norm, self.q, self.kv, self.proj, self.fc1):
            layer.build((None, channels))
        self.fc2.build((None, 4 * channels))

    def call(self, inputs):
        _, patches, channels = inputs.shape
        head_width = channels // self.heads
        kv = tf.reshape(self.kv(tf.reshape(inputs, [-1, channels])), [-1, patches, 2, self.heads, head_width])
        keys, values = tf.unstack(tf.transpose(kv, [2, 0, 3, 1, 4]))
        queries = tf.reshape(self.q(self.probe[None]), [1, self.heads, 1, head_width])
        attended = attention(tf.tile(queries, [tf.shape(keys)[0], 1, 1, 1]), keys, values)
        rows = tf.cast(self.proj(tf.reshape(attended, [-1, channels])), tf.float32)
        hidden = GELUS[self.gelu](self.fc1(self.norm(rows)))
        return rows + tf.cast(self.fc2(hidden), tf.float32)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs.shape[0], inputs.shape[-1]), 'float32')


def attention(queries, keys, values, bias=None):
    """Compute softmax(q·k / √D + bias)·v per head: [B, heads, Q, D], [B, heads, T, D], [B, heads, T, D] -> [B, heads, Q, D].

    bias: float32 [N, heads, Q, T] of the groups of which each image has N, or None.
    """
    products = tf.cast(tf.matmul(queries * queries.shape[-1] ** -0.5, keys, transpose_b=True), tf.float32)
    if bias is not None:
        products = tf.reshape(tf.reshape(products, [-1, *bias.shape]) + bias, tf.shape(products))
    weights = tf.nn.softmax(products)
    return tf.matmul(tf.cast(weights, values.dtype), values)

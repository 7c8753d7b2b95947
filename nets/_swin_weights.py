"""Published weights of Swin transformers, `.safetensors` with the names of the authors, timm, MegaDescriptor or SOLIDER.

`tripletreid.modeling.published` defines a layout.
"""
import re

import numpy as np

from nets._published import as_it_is
from tripletreid.modeling.torch_names import KINDS, ZEROS, Source, from_torch

ANCHORS = ('patch_embed.proj.weight', 'patch_embed.projection.weight')
OPTIONAL = ('absolute_pos_embed',)
# Classifiers, constants, the norms of SOLIDER's other feature maps and its semantic weights of the last stage, which its
# features do not pass through.
UNNEEDED = re.compile(r'(^|\.)(head|classifier\w*|bottleneck\w*|norm[012]|semantic_embed_[wb]|student|dino_head)\.'
                      r'|(^|\.)(relative_position_index|attn_mask|mask_token)$')
# SOLIDER scales channels after a stage by a weight between 0 (appearance) and 1 (semantics); re-identification takes this.
SEMANTIC_WEIGHT = 0.2
TIMM = {'patches': 'patch_embed.proj', 'patches_norm': 'patch_embed.norm', 'qkv': 'attn.qkv', 'proj': 'attn.proj',
        'relative_positions': 'attn.relative_position_bias_table', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2', 'norm': 'norm'}
SOLIDER = {**TIMM, 'patches': 'patch_embed.projection', 'qkv': 'attn.w_msa.qkv', 'proj': 'attn.w_msa.proj',
           'relative_positions': 'attn.w_msa.relative_position_bias_table', 'fc1': 'ffn.layers.0.0', 'fc2': 'ffn.layers.1',
           'norm': 'norm3'}


def signatures(width, depth):
    """Return the arrays that distinguish a Swin transformer, see `tripletreid.modeling.published`; depth: of stage 3."""
    return ({'patch_embed.proj.weight': (width, 3, 4, 4), f'layers.2.blocks.{depth - 1}.norm1.weight': (4 * width,)},
            {'patch_embed.projection.weight': (width, 3, 4, 4), f'stages.2.blocks.{depth - 1}.norm1.weight': (4 * width,)})


def options(held, prefix):
    """Return the windows, and the range of pixels, which SOLIDER's training for persons shifts."""
    solider = _is_solider(held, prefix)
    trained = prefix.endswith('base.') and f'{prefix.removesuffix("base.")}bottleneck.running_mean' in held
    return {'windows': 'solider' if solider else 'timm', 'pixels': 'half' if trained else 'imagenet'}


def input_size(held, prefix):
    """Return nothing: weights are for images of any size."""
    return {}


def is_unneeded(name, held, prefix):
    """Return whether an array is known not to be a part of the body."""
    return bool(UNNEEDED.search(name))


def sources(held, prefix, wanted):
    """Return {TF1 name: Source} of all variables of a body."""
    return {name: _source(held, prefix, name.partition('/')[2]) for name in wanted if not name.startswith('gem/')}


def _is_solider(held, prefix):
    return f'{prefix}patch_embed.projection.weight' in held


def _source(held, prefix, name):
    solider = _is_solider(held, prefix)
    names, stages = (SOLIDER, 'stages') if solider else (TIMM, 'layers')
    found = re.fullmatch(r'layer_(\d)/(?:block_(\d+)/)?(\w+)(?:/(\w+))?', name)
    if not found:
        scope, kind = name.split('/')
        return Source((f'{prefix}{names[scope]}.{KINDS[kind]}',), from_torch)
    stage, block, scope, kind = found.groups()
    if block:
        module = f'{prefix}{stages}.{int(stage) - 1}.blocks.{int(block) - 1}.{names.get(scope, scope)}'
        return Source((f'{module}.{KINDS[kind]}',), from_torch) if kind else Source((module,), as_it_is)
    # timm has the merging at the start of a stage, the others have it at the end of the stage before.
    late = not solider and f'{prefix}layers.0.downsample.reduction.weight' not in held
    module = f'{prefix}{stages}.{int(stage) - 1 - (not late)}.downsample'
    part = 'norm' if scope == 'merge_norm' else 'reduction'
    if not solider:
        if kind == 'biases':
            return ZEROS
        return Source((f'{module}.{part}.{KINDS[kind]}',), from_torch)
    return _merging_of_solider(held, prefix, f'{module}.{part}', kind, int(stage) - 2)


def _merging_of_solider(held, prefix, module, kind, stage):
    """Return the source of a merging whose neighbours are in another order, and whose outputs are scaled."""
    def reordered(array):  # The axis of channels, rows and columns of neighbours becomes columns, rows, channels.
        array = array.reshape(*array.shape[:-1], array.shape[-1] // 4, 2, 2)
        return np.moveaxis(array, (-1, -3), (-3, -1)).reshape(*array.shape[:-3], -1)

    if module.endswith('norm'):
        return Source((f'{module}.{KINDS[kind]}',), lambda shape, array: reordered(array))
    scale, offset = ([f'{prefix}semantic_embed_{letter}.{stage}.{each}' for each in ('weight', 'bias')] for letter in 'wb')
    if scale[0] not in held:  # A model that was trained without it.
        if kind == 'biases':
            return ZEROS
        return Source((f'{module}.weight',), lambda shape, weight: reordered(weight).T)
    if kind == 'biases':
        return Source(tuple(offset), lambda shape, weight, bias: _semantic(weight, bias))
    return Source((f'{module}.weight', *scale), lambda shape, array, weight, bias: (
        reordered(array).T * np.logaddexp(0, _semantic(weight, bias))))


def _semantic(weight, bias):
    return np.float32(weight @ [SEMANTIC_WEIGHT, 1 - SEMANTIC_WEIGHT] + bias)

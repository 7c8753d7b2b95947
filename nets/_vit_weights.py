"""Published weights of vision transformers: as JAX's codebases store them (`.npz`), and in timm's and CLIP's layouts.

JAX's are google-research/vision_transformer's, of today and of 2020, and big_vision's with SigLIP's. timm's layout is also
used by DINO, DINOv2, DINOv3, TransReID and PersonViT, and CLIP's by OpenAI, open_clip and CLIP-ReID (all `.safetensors`).
`tripletreid.modeling.published` defines a layout.
"""
import math
import re

import numpy as np

from nets._published import as_it_is, resized
from tripletreid.modeling.torch_names import KINDS, ZEROS, Source, from_torch

ANCHORS = ('patch_embed.proj.weight', 'embedding/kernel', 'class_embedding')
REGISTERS = ('reg_token', 'register_tokens', 'storage_tokens')
OPTIONAL = (*REGISTERS, 'norm_pre', 'pos_embed')
# CLIP's names, as patterns in timm's and their replacements.
CLIP_NAMES = tuple((re.compile(pattern), name) for pattern, name in (
    (r'^patch_embed\.proj', 'conv1'), ('^cls_token$', 'class_embedding'), ('^pos_embed$', 'positional_embedding'),
    (r'^norm_pre\b', 'ln_pre'), (r'^norm\b', 'ln_post'), (r'^head\.weight$', 'proj'), ('^blocks', 'transformer.resblocks'),
    (r'attn\.qkv\.', 'attn.in_proj_'), (r'attn\.proj', 'attn.out_proj'), (r'\bnorm([12])', r'ln_\1'),
    (r'mlp\.fc1', 'mlp.c_fc'), (r'mlp\.fc2', 'mlp.c_proj')))
# Classifiers and projections, SigLIP's text encoder, the state of an optimizer, camera embeddings, mask tokens, DINOv3's
# constants, and the student in self-distillation.
UNNEEDED = re.compile(r'(^|/)(head|pre_logits|MAPHead_0|txt)/|^(params/)?[tb]$|^opt/state/'
                    r'|(^|\.)(head|fc|pre_logits|attn_pool|classifier\w*|bottleneck\w*|dino_head|ibot_head|student|text|rope_embed)\.'
                    r'|(^|\.)(mask_token|masked_embed|sie_embed|logit_scale|logit_bias|proj|attn\.qkv\.bias_mask)$')
POSITIONS = re.compile('/positions$')
# Sizes of images and strides of patches, in the order in which a number of positions is looked up. The first three are crops
# of people, where TransReID's patches may overlap.
SIZES = ((256, 128), (384, 128), (224, 112))
STRIDES = (16, 14, 12, 11)


def signatures(patch, width, depth):
    """Return the arrays that distinguish a transformer from others, see `tripletreid.modeling.published`."""
    return ({'patch_embed.proj.weight': (width, 3, patch, patch), f'blocks.{depth - 1}.norm1.weight': (width,)},
            {'embedding/kernel': (patch, patch, 3, width)})


def clip_signatures(patch, width, depth):
    """Return the arrays that distinguish one of CLIP's transformers from others, by timm's names and CLIP's."""
    ours = {**signatures(patch, width, depth)[0], 'norm_pre.weight': (width,)}
    return ours, {'class_embedding': (width,), **{clip_name(name): shape for name, shape in ours.items()}}


def clip_name(name):
    """Return CLIP's name of an array that timm calls `name`."""
    for pattern, replacement in CLIP_NAMES:
        name = pattern.sub(replacement, name)
    return name


def options(held, prefix):
    """Return class token and registers, the approximation of GELU, the range of pixels, and a head that pools."""
    jax, clip = _is_jax(held), _is_clip(held, prefix)
    class_token = clip or prefix + ('cls' if jax else 'cls_token') in held
    pools = prefix + ('MAPHead_0/probe' if jax else 'attn_pool.latent') in held
    found = {'class_token': 'yes' if class_token else 'no', 'registers': _registers(held, prefix),
             'gelu': 'tanh' if jax else 'quick' if clip else 'exact', 'pixels': 'imagenet'}
    if jax or pools or _shifts_pixels(held, prefix):
        found['pixels'] = 'half'
    elif clip or f'{prefix}norm_pre.weight' in held:
        found['pixels'] = 'clip'
    if not class_token:
        found['pooling'] = 'map' if pools else 'avg'
    return found


def input_size(held, prefix):
    """Return the size of images, and the stride of overlapping patches, that the number of position embeddings implies."""
    name_of = clip_name if _is_clip(held, prefix) else str
    kernel, positions = (held.get(prefix + name_of(name)) for name in ('patch_embed.proj.weight', 'pos_embed'))
    if _is_jax(held) or not (kernel and positions):
        return {}
    patch, rows = kernel[-1], positions[-2]
    counts = (rows, rows - 1, rows - 1 - _registers(held, prefix))
    for height, width in SIZES:
        for stride in STRIDES:
            if ((height - patch) // stride + 1) * ((width - patch) // stride + 1) in counts and stride <= patch:
                return {'net_input_height': height, 'net_input_width': width,
                        **({'patch_stride': stride} if stride != patch else {})}
    side = next((math.isqrt(count) for count in counts if count and math.isqrt(count) ** 2 == count), None)
    return {'net_input_height': side * patch, 'net_input_width': side * patch} if side else {}


def sources(held, prefix, wanted):
    """Return {TF1 name: Source} of all variables of a body."""
    scope = next(iter(wanted)).split('/')[0]
    find_sources = _jax_sources if _is_jax(held) else _torch_sources
    found = find_sources(held, prefix, {name.removeprefix(f'{scope}/'): shape for name, shape in wanted.items()})
    return {f'{scope}/{name}': source for name, source in found.items()}


def is_unneeded(name, held, prefix):
    """Return whether an array is known to be no part of the body."""
    if _is_clip(held, prefix) and not name.startswith(prefix):
        return True  # The text encoder, and CLIP-ReID's prompts, classifiers and camera embeddings.
    replaced = _last_block(held, prefix)
    return bool(UNNEEDED.search(name)) or replaced is not None and name.startswith(
        (f'{prefix}blocks.{replaced}.', f'{prefix}norm.', f'{_outer(prefix)}b1.', f'{_outer(prefix)}b2.'))


def _outer(prefix):
    return prefix[:prefix[:-1].rfind('.') + 1]


def _shifts_pixels(held, prefix):
    """Return whether TransReID's code or its descendants trained these weights, which shift pixels to -1..1."""
    return prefix.endswith(('base.', 'image_encoder.')) and f'{_outer(prefix)}bottleneck.running_mean' in held


def _is_clip(held, prefix):
    return f'{prefix}class_embedding' in held


def _last_block(held, prefix):
    """Return the number of the block that TransReID's branch `b1` replaces, with the last norm; None without a branch."""
    if f'{_outer(prefix)}b1.0.norm1.weight' not in held:
        return None
    return max((int(found[1]) for name in held if (found := re.match(rf'{re.escape(prefix)}blocks\.(\d+)\.', name))),
               default=None)


def _is_jax(held):
    return any('/' in name for name in held)


def _registers(held, prefix):
    """Return the number of register tokens; JAX's code bases have none."""
    name = _register_name(held, prefix)
    return held[name][-2] if name in held and len(held[name]) > 1 else 0


def _register_name(held, prefix):
    return next((prefix + name for name in REGISTERS if prefix + name in held), f'{prefix}register_tokens')


def _token_sources(wanted, positions, class_token, registers):
    """Return the sources of the variables tokens/…; the other arguments are names in the file."""
    height, width, _ = wanted['tokens/positions']
    tokens = [0]
    if 'tokens/class_token' in wanted:
        tokens.append(1)
    if 'tokens/registers' in wanted:
        tokens.append(tokens[-1] + wanted['tokens/registers'][0])

    def token(shape, array, table, first):
        """Return a token with its row of the table added: one variable in place of an equal sum of two."""
        array, table = array.reshape(shape), table.reshape(-1, shape[-1])
        count = tokens_of(table)
        rows = table[first:count].reshape(-1, shape[-1])[:array.size // shape[-1]]
        return array + rows.reshape(shape) if len(rows) else array

    def tokens_of(table):
        return _tokens_and_grid(len(table), tokens, (height, width))[0]

    def patches(shape, table):
        table = table.reshape(-1, shape[-1])
        count, grid = _tokens_and_grid(len(table), tokens, (height, width))
        table = table[count:].reshape(*grid, shape[-1])
        return table if grid == shape[:2] else resized(table, *shape[:2])

    found = {'tokens/positions': Source((positions,), patches)}
    if 'tokens/class_token' in wanted:
        found['tokens/class_token'] = Source((class_token, positions), lambda *given: token(*given, first=0))
    if 'tokens/registers' in wanted:
        found['tokens/registers'] = Source((registers, positions), lambda *given: token(*given, first=tokens[-2]))
    return found


def _tokens_and_grid(rows, tokens, wanted):
    """Divide a table of position embeddings: (number of rows for tokens, (h, w) of the patches).

    Files do not store the shape of the grid. It is a square, if that is possible, as all have it that learned from
    ImageNet; else the one wanted; else twice as high as wide, as crops of people are.

    Args:
        rows: of the table.
        tokens: how many of them may be of tokens.
        wanted: (h, w) of the body.

    Raises:
        ValueError: there is no such grid.
    """
    for is_grid in (lambda count: (math.isqrt(count),) * 2, lambda count: wanted,
                    lambda count: (2 * math.isqrt(count // 2), math.isqrt(count // 2))):
        for token_rows in tokens:
            grid = is_grid(max(0, rows - token_rows))
            if rows > token_rows and math.prod(grid) == rows - token_rows:
                return token_rows, grid
    raise ValueError(f'{rows} position embeddings are of no grid')


def _torch_sources(held, prefix, wanted):
    name_of = clip_name if _is_clip(held, prefix) else str
    names = [prefix + name_of(name) for name in ('pos_embed', 'cls_token')]
    if 'tokens/positions' in wanted:
        found = _token_sources(wanted, *names, _register_name(held, prefix))
    else:  # Rotary position embeddings have no variables.
        found = {f'tokens/{kind}': Source((name,), as_it_is) for kind, name in (
            ('class_token', names[1]), ('registers', _register_name(held, prefix))) if f'tokens/{kind}' in wanted}
    scopes = {'patches': 'patch_embed.proj', 'pre_norm': 'norm_pre', 'norm': 'norm', 'projection': 'head',
              'map_head/q': 'attn_pool.q', 'map_head/kv': 'attn_pool.kv', 'map_head/proj': 'attn_pool.proj',
              'map_head/norm': 'attn_pool.norm', 'map_head/fc1': 'attn_pool.mlp.fc1', 'map_head/fc2': 'attn_pool.mlp.fc2'}
    inside = {'norm1': 'norm1', 'qkv': 'attn.qkv', 'proj': 'attn.proj', 'norm2': 'norm2', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
    replaced = _last_block(held, prefix)
    for name in wanted.keys() - found.keys():
        scope, _, kind = name.rpartition('/')
        block = re.fullmatch(r'block_(\d+)(/(\w+))?', scope)
        if name == 'map_head/probe':
            theirs = 'attn_pool.latent'
        elif replaced is not None and (scope == 'norm' or block and int(block[1]) - 1 == replaced):
            # TransReID's global feature goes through a copy of the last block and norm; the originals are never trained.
            inner = f'1.{KINDS[kind]}' if scope == 'norm' else f'0.{inside[block[3]]}.{KINDS[kind]}'
            found[name] = Source((f'{_outer(prefix)}b1.{inner}',), from_torch)
            continue
        elif block and not block[3]:  # block_1/scale1
            theirs = f'blocks.{int(block[1]) - 1}.ls{kind[-1]}.gamma'
            if prefix + theirs not in held and prefix + theirs.replace(f'ls{kind[-1]}.gamma', f'gamma_{kind[-1]}') in held:
                theirs = theirs.replace(f'ls{kind[-1]}.gamma', f'gamma_{kind[-1]}')
        elif block:
            theirs = f'blocks.{int(block[1]) - 1}.{inside[block[3]]}.{KINDS[kind]}'
        else:
            theirs = f'{scopes[scope]}.{KINDS[kind]}'
        found[name] = Source((prefix + name_of(theirs),), as_it_is if name_of(theirs) == 'proj' else from_torch)
        if theirs.endswith('attn.qkv.bias') and 'tokens/positions' not in wanted:
            found[name] = _bias_without_keys(held, *found[name].names)
    return found


def _bias_without_keys(held, name):
    """Return the source of DINOv3's bias of attention, which keys do not have: a masked bias, two parts, or nothing."""
    module = name.removesuffix('qkv.bias')
    if f'{name}_mask' in held:
        # Where the mask is 0, the bias was never trained and may be anything, so it is not multiplied.
        return Source((name, f'{name}_mask'), lambda shape, bias, mask: np.where(mask == 0, np.float32(0), bias))
    if f'{module}q_bias' in held:
        return Source((f'{module}q_bias', f'{module}v_bias'), lambda shape, queries, values: np.concatenate(
            [queries, np.zeros_like(values), values]))
    if name in held:
        return Source((name,), from_torch)
    return ZEROS  # timm's files skip this bias, which is zero in DINOv3's.


def _jax_sources(held, prefix, wanted):
    positions = prefix + 'pos_embedding'
    if positions not in held:
        positions = prefix + 'Transformer/posembed_input/pos_embedding'
    found = _token_sources(wanted, positions, f'{prefix}cls', f'{prefix}registers')
    encoder = f'{prefix}Transformer/'
    stacked = any(name.startswith(f'{encoder}encoderblock/') for name in held)
    for name in wanted.keys() - found.keys():
        scope, _, kind = name.rpartition('/')
        block = re.fullmatch(r'block_(\d+)(/(\w+))?', scope)
        if block:
            number = int(block[1]) - 1
            module = f'{encoder}encoderblock' + ('' if stacked else f'_{number}')
            found[name] = _jax_source(held, module, block[3] or kind, kind)
            if stacked:
                found[name] = _from_stack(found[name], number)
        elif name == 'map_head/probe':
            found[name] = Source((f'{prefix}MAPHead_0/probe',), as_it_is)
        elif scope.startswith('map_head/'):
            part = scope.removeprefix('map_head/')
            found[name] = _jax_source(held, f'{prefix}MAPHead_0', {'norm': 'norm1'}.get(part, part), kind)
        elif scope == 'norm':
            found[name] = Source((f'{encoder}encoder_norm/{_JAX_KINDS[kind]}',), as_it_is)
        else:
            found[name] = Source((f'{prefix}embedding/{_JAX_KINDS[kind]}',), as_it_is)
    return found


_JAX_KINDS = {'weights': 'kernel', 'biases': 'bias', 'gamma': 'scale', 'beta': 'bias'}


def _jax_source(held, module, part, kind):
    """Return the source of …/part/kind in a block or in the pooling head; files of 2020 number all modules of a block."""
    def submodule(*names):
        return next((f'{module}/{name}' for name in names if any(each.startswith(f'{module}/{name}/') for each in held)),
                    f'{module}/{names[0]}')

    kind = _JAX_KINDS.get(kind, kind)
    attention = submodule('MultiHeadDotProductAttention_0', 'MultiHeadDotProductAttention_1')
    if part in ('q', 'kv', 'qkv'):
        names = {'q': 'query', 'k': 'key', 'v': 'value'}
        return Source(tuple(f'{attention}/{names[each]}/{kind}' for each in part), _heads_joined)
    if part == 'proj':
        return Source((f'{attention}/out/{kind}',), as_it_is)
    if part in ('norm1', 'norm2'):
        norm = submodule('LayerNorm_0') if part == 'norm1' else submodule('LayerNorm_1', 'LayerNorm_2')
        return Source((f'{norm}/{kind}',), as_it_is)
    mlp = submodule('MlpBlock_0', 'MlpBlock_3')
    dense = {'fc1': 'Dense_0', 'fc2': 'Dense_1'}.get(part, part)
    return Source((f'{mlp}/{dense}/{kind}',), as_it_is)


def _heads_joined(shape, *arrays):
    """Concatenate kernels [C, heads, depth] or biases [heads, depth] of one or several: -> [C, D] or [D]."""
    return np.concatenate([array.reshape(*shape[:-1], -1) for array in arrays], axis=-1)


def _from_stack(source, number):
    return Source(source.names, lambda shape, *arrays: source.convert(shape, *(array[number] for array in arrays)))

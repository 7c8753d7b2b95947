"""Published weights of vision transformers: as JAX's codebases store them (`.npz`), and in timm's layout (`.safetensors`).

The former are google-research/vision_transformer's, of today and of 2020, and big_vision's with SigLIP's. In the latter
are timm's, DINO's, DINOv2's, TransReID's and PersonViT's. See `pretrained.published_layout` for the contract.
"""
import math
import re

import numpy as np

from nets._published import Source, as_it_is, from_torch, prefix_of, resized

JAX_PREFIX = r'(params/|opt/target/|target/)?(img/)?'
TORCH_PREFIX = r'((base|backbone|teacher|module|model|visual|trunk)\.)*'
# Classifiers and projections, SigLIP's text encoder, the state of an optimizer, camera embeddings, mask tokens, TransReID's
# copies of the last block for parts of the body.
BESIDE = re.compile(r'(^|/)(head|pre_logits|MAPHead_0|txt)/|^(params/)?[tb]$|^opt/state/'
                    r'|(^|\.)(head|fc|pre_logits|attn_pool|classifier\w*|bottleneck\w*|dino_head|ibot_head|student|b1|b2|text)\.'
                    r'|(^|\.)(mask_token|masked_embed|sie_embed|logit_scale|logit_bias)$')
POSITIONS = re.compile('/positions$')


def options(held):
    """What a file tells: class token and registers, the approximation of GELU, the range of pixels, a head that pools."""
    jax = _is_jax(held)
    prefix = _prefix(held)
    class_token = prefix + ('cls' if jax else 'cls_token') in held
    pools = prefix + ('MAPHead_0/probe' if jax else 'attn_pool.latent') in held
    found = {'class_token': 'yes' if class_token else 'no', 'registers': _registers(held, prefix),
             'gelu': 'tanh' if jax else 'exact', 'pixels': 'half' if jax or pools else 'imagenet'}
    if not class_token:
        found['pooling'] = 'map' if pools else 'avg'
    return found


def sources(held, wanted):
    """{TF1 name: Source} of all variables of a body."""
    scope = next(iter(wanted)).split('/')[0]
    of_layout = _jax_sources if _is_jax(held) else _torch_sources
    found = of_layout(held, _prefix(held), {name.removeprefix(f'{scope}/'): shape for name, shape in wanted.items()})
    return {f'{scope}/{name}': source for name, source in found.items()}


def _is_jax(held):
    return any('/' in name for name in held)


def _prefix(held):
    if _is_jax(held):
        return prefix_of(held, 'embedding/kernel', JAX_PREFIX)
    return prefix_of(held, 'patch_embed.proj.weight', TORCH_PREFIX)


def _registers(held, prefix):
    """How many register tokens there are; JAX's codebases have none."""
    name = _register_name(held, prefix)
    return held[name][-2] if name in held and len(held[name]) > 1 else 0


def _register_name(held, prefix):
    return prefix + ('reg_token' if f'{prefix}reg_token' in held else 'register_tokens')


def _token_sources(wanted, positions, class_token, registers):
    """Sources of the variables tokens/…; the other arguments are names in the file."""
    height, width, _ = wanted['tokens/positions']
    tokens = [0]
    if 'tokens/class_token' in wanted:
        tokens.append(1)
    if 'tokens/registers' in wanted:
        tokens.append(tokens[-1] + wanted['tokens/registers'][0])

    def token(shape, array, table, first):
        """With its entry of the table added, which comes to the same: one variable instead of a sum of two."""
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
    """How a table of position embeddings is divided: how many of its rows are of tokens, and (h, w) of the patches.

    Files do not tell the shape of the grid. It is a square, if that is possible, as all have it that learned from
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
        for of_tokens in tokens:
            grid = is_grid(max(0, rows - of_tokens))
            if rows > of_tokens and math.prod(grid) == rows - of_tokens:
                return of_tokens, grid
    raise ValueError(f'{rows} position embeddings are of no grid')


def _torch_sources(held, prefix, wanted):
    found = _token_sources(wanted, f'{prefix}pos_embed', f'{prefix}cls_token', _register_name(held, prefix))
    scopes = {'patches': 'patch_embed.proj', 'norm': 'norm', 'map_head/q': 'attn_pool.q', 'map_head/kv': 'attn_pool.kv',
              'map_head/proj': 'attn_pool.proj', 'map_head/norm': 'attn_pool.norm', 'map_head/fc1': 'attn_pool.mlp.fc1',
              'map_head/fc2': 'attn_pool.mlp.fc2'}
    inside = {'norm1': 'norm1', 'qkv': 'attn.qkv', 'proj': 'attn.proj', 'norm2': 'norm2', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
    kinds = {'weights': 'weight', 'biases': 'bias', 'gamma': 'weight', 'beta': 'bias'}
    for name in wanted.keys() - found.keys():
        scope, _, kind = name.rpartition('/')
        block = re.fullmatch(r'block_(\d+)(/(\w+))?', scope)
        if name == 'map_head/probe':
            theirs = 'attn_pool.latent'
        elif block and not block[3]:  # block_1/scale1
            theirs = f'blocks.{int(block[1]) - 1}.ls{kind[-1]}.gamma'
        elif block:
            theirs = f'blocks.{int(block[1]) - 1}.{inside[block[3]]}.{kinds[kind]}'
        else:
            theirs = f'{scopes[scope]}.{kinds[kind]}'
        found[name] = Source((prefix + theirs,), from_torch)
    return found


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
                found[name] = _of_stack(found[name], number)
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
    """Source of …/part/kind in a block or in the head that pools; files of 2020 number the modules of a block through."""
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
    """Kernels [C, heads, depth] or biases [heads, depth] of one or several -> [C, D] or [D], side by side."""
    return np.concatenate([array.reshape(*shape[:-1], -1) for array in arrays], axis=-1)


def _of_stack(source, number):
    return Source(source.names, lambda shape, *arrays: source.convert(shape, *(array[number] for array in arrays)))

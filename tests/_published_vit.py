"""Weights of a tiny vision transformer, laid out as they are published."""
import numpy as np
from safetensors.numpy import save_file

PATCH, WIDTH, HEADS, DEPTH = 4, 16, 2, 2
INSIDE = {'norm1': (1, WIDTH), 'norm2': (1, WIDTH), 'query': (WIDTH, WIDTH), 'key': (WIDTH, WIDTH),
          'value': (WIDTH, WIDTH), 'out': (WIDTH, WIDTH), 'fc1': (WIDTH, 4 * WIDTH), 'fc2': (4 * WIDTH, WIDTH)}


def random_weights(grid=None, class_token=True, registers=0, layer_scale=False, map_head=False, projection=0,
                   attention_bias=True):
    """Weights of a transformer: {name: array}, each of the layers of `INSIDE` with a kernel and a bias.

    Without a grid positions are rotary, and keys have no bias. With a projection it is one of CLIP's.
    """
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(0, 0.3, shape).astype(np.float32)

    def layers(names):
        return {name: (1 + normal(*INSIDE[name][1:]) if 'norm' in name else normal(*INSIDE[name]), normal(INSIDE[name][1]))
                for name in names}

    weights = {'patches': (normal(PATCH, PATCH, 3, WIDTH), normal(WIDTH)), 'norm': layers(['norm1'])['norm1']}
    if grid:
        weights['positions'] = normal(*grid, WIDTH)
    weights['blocks'] = [layers(INSIDE) for _ in range(DEPTH)]
    if class_token:
        weights |= {'class_token': normal(WIDTH), 'class_position': normal(WIDTH) if grid else np.zeros(WIDTH, np.float32)}
    if projection:
        weights |= {'pre_norm': layers(['norm1'])['norm1'], 'projection': normal(WIDTH, projection),
                    'patches': (weights['patches'][0], np.zeros(WIDTH, np.float32))}
    for block in weights['blocks'] if not grid else ():
        for each in ('query', 'key', 'value'):
            if each == 'key' or not attention_bias:
                block[each] = (block[each][0], np.zeros(WIDTH, np.float32))
    if registers:
        weights['registers'] = normal(registers, WIDTH)
    for block in weights['blocks']:
        block['scales'] = [normal(WIDTH), normal(WIDTH)] if layer_scale else [1, 1]
    if map_head:
        weights['map_head'] = {**layers([name for name in INSIDE if name != 'norm1']), 'probe': normal(WIDTH)}
    return weights


def torch_arrays(weights, prefix='', registers='register_tokens', with_class_position=True, clip=False, scale='ls{}.gamma',
                 mask=False):
    """As timm names them, or as CLIP does; with a mask as DINOv3 does, which stores any bias of keys."""
    def linear(name, layer):
        return {f'{name}.weight': layer[0].T, f'{name}.bias': layer[1]}

    def joined(name, layers):
        return linear(name, [np.concatenate(each, axis=-1) for each in zip(*layers)])

    arrays = {'patch_embed.proj.weight': weights['patches'][0].transpose(3, 2, 0, 1), **linear('norm', weights['norm'])}
    if 'pre_norm' in weights:
        arrays |= linear('norm_pre', weights['pre_norm'])
    else:
        arrays['patch_embed.proj.bias'] = weights['patches'][1]
    if 'class_token' in weights:
        token = weights['class_token'] + (0 if with_class_position else weights['class_position'])
        arrays['cls_token'] = token[None, None]
    if 'positions' in weights:
        positions = weights['positions'].reshape(-1, WIDTH)
        if 'class_token' in weights and with_class_position:
            positions = np.concatenate([weights['class_position'][None], positions])
        arrays['pos_embed'] = positions[None]
    if 'registers' in weights:
        arrays[registers] = weights['registers'][None]
    for number, block in enumerate(weights['blocks']):
        name = f'blocks.{number}'
        qkv = joined(f'{name}.attn.qkv', [block[each] for each in ('query', 'key', 'value')])
        if mask:
            keys = np.repeat(np.float32([0, 1, 0]), WIDTH)
            qkv |= {f'{name}.attn.qkv.bias': qkv[f'{name}.attn.qkv.bias'] + 7 * keys, f'{name}.attn.qkv.bias_mask': 1 - keys}
        arrays |= qkv if any(qkv[f'{name}.attn.qkv.bias']) else {f'{name}.attn.qkv.weight': qkv[f'{name}.attn.qkv.weight']}
        for ours, theirs in (('norm1', 'norm1'), ('norm2', 'norm2'), ('out', 'attn.proj'), ('fc1', 'mlp.fc1'),
                             ('fc2', 'mlp.fc2')):
            arrays |= linear(f'{name}.{theirs}', block[ours])
        if not isinstance(block['scales'][0], int):
            arrays |= {f'{name}.{scale.format(branch)}': block['scales'][branch - 1] for branch in (1, 2)}
    if 'map_head' in weights:
        head = weights['map_head']
        arrays |= {'attn_pool.latent': head['probe'][None, None], **linear('attn_pool.q', head['query']),
                   **joined('attn_pool.kv', [head['key'], head['value']]), **linear('attn_pool.proj', head['out']),
                   **linear('attn_pool.norm', head['norm2']), **linear('attn_pool.mlp.fc1', head['fc1']),
                   **linear('attn_pool.mlp.fc2', head['fc2'])}
    if clip:
        arrays = in_clip(arrays) | {'proj': weights['projection']}
    return {prefix + name: np.ascontiguousarray(array) for name, array in arrays.items()}


def in_clip(arrays):
    """Rename arrays from timm's names to CLIP's."""
    inside = {'norm1': 'ln_1', 'norm2': 'ln_2', 'attn.proj': 'attn.out_proj', 'mlp.fc1': 'mlp.c_fc', 'mlp.fc2': 'mlp.c_proj'}
    names = {'norm_pre': 'ln_pre', 'norm': 'ln_post', 'patch_embed.proj': 'conv1'} | {
        f'blocks.{number}.{ours}': f'transformer.resblocks.{number}.{theirs}'
        for number in range(DEPTH) for ours, theirs in inside.items()}
    renamed = {'class_embedding': arrays.pop('cls_token')[0, 0], 'positional_embedding': arrays.pop('pos_embed')[0]}
    for name, array in arrays.items():
        module, _, kind = name.rpartition('.')
        if module.endswith('qkv'):
            renamed[f'transformer.resblocks.{module.split(".")[1]}.attn.in_proj_{kind}'] = array
        else:
            renamed[f'{names[module]}.{kind}'] = array
    return renamed


def jax_arrays(weights, prefix='', old=False, stacked=False):
    """As Flax names them, in 2020 or today, block by block or all of them in one array."""
    def module(name, layer, kernel='kernel'):
        return {f'{name}/{kernel}': layer[0], f'{name}/bias': layer[1]}

    def attention(name, layers):
        heads = HEADS, WIDTH // HEADS
        arrays = {}
        for each in ('query', 'key', 'value'):
            arrays |= module(f'{name}/{each}', (layers[each][0].reshape(WIDTH, *heads), layers[each][1].reshape(heads)))
        return arrays | module(f'{name}/out', (layers['out'][0].reshape(*heads, WIDTH), layers['out'][1]))

    def mlp(name, layers):
        return module(f'{name}/Dense_0', layers['fc1']) | module(f'{name}/Dense_1', layers['fc2'])

    numbers = (0, 1, 2, 3) if old else (0, 0, 1, 0)
    blocks = []
    for block in weights['blocks']:
        blocks.append(module(f'LayerNorm_{numbers[0]}', block['norm1'], 'scale')
                      | attention(f'MultiHeadDotProductAttention_{numbers[1]}', block)
                      | module(f'LayerNorm_{numbers[2]}', block['norm2'], 'scale') | mlp(f'MlpBlock_{numbers[3]}', block))
    positions = weights['positions'].reshape(-1, WIDTH)
    arrays = {**module('embedding', weights['patches']), **module('Transformer/encoder_norm', weights['norm'], 'scale')}
    if 'class_token' in weights:
        arrays['cls'] = weights['class_token'][None, None]
        positions = np.concatenate([weights['class_position'][None], positions])
    arrays['Transformer/posembed_input/pos_embedding' if old else 'pos_embedding'] = positions[None]
    if stacked:
        arrays |= {f'Transformer/encoderblock/{name}': np.stack([block[name] for block in blocks]) for name in blocks[0]}
    else:
        for number, block in enumerate(blocks):
            arrays |= {f'Transformer/encoderblock_{number}/{name}': array for name, array in block.items()}
    if 'map_head' in weights:
        head = weights['map_head']
        arrays |= {'MAPHead_0/probe': head['probe'][None, None], **mlp('MAPHead_0/MlpBlock_0', head),
                   **attention('MAPHead_0/MultiHeadDotProductAttention_0', head),
                   **module('MAPHead_0/LayerNorm_0', head['norm2'], 'scale')}
    return {prefix + name: array for name, array in arrays.items()}


def written(path, arrays):
    """Write a file of arrays, and return its path as text."""
    np.savez(path, **arrays) if path.suffix == '.npz' else save_file(arrays, path)
    return str(path)

"""Swin transformers against plain NumPy, token by token, from the same arrays in the layouts of timm and SOLIDER."""
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from nets import _swin, _swin_weights
from test_vit import STATISTICS, gelu, norm
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.modeling import export_module, exports, importing, model, published
from tripletreid.modeling.inference_flags import View

WIDTH, HEADS, DEPTHS, WINDOW = 8, (1, 2), (2, 2), 7
tiny = _swin.Architecture('tiny', WIDTH, HEADS, DEPTHS).body


def random_weights():
    """Weights with timm's names, {name: array}."""
    random = np.random.default_rng(0)
    arrays = {'patch_embed.proj.weight': (WIDTH, 3, 4, 4), 'patch_embed.proj.bias': (WIDTH,),
              **norm_shapes('patch_embed.norm', WIDTH)}
    for stage, (heads, depth) in enumerate(zip(HEADS, DEPTHS)):
        channels = WIDTH << stage
        if stage:
            arrays |= {f'layers.{stage}.downsample.reduction.weight': (channels, 2 * channels),
                       **norm_shapes(f'layers.{stage}.downsample.norm', 2 * channels)}
        for block in range(depth):
            name = f'layers.{stage}.blocks.{block}'
            arrays |= norm_shapes(f'{name}.norm1', channels) | norm_shapes(f'{name}.norm2', channels)
            arrays[f'{name}.attn.relative_position_bias_table'] = ((2 * WINDOW - 1) ** 2, heads)
            for layer, inputs, outputs in (('attn.qkv', 1, 3), ('attn.proj', 1, 1), ('mlp.fc1', 1, 4), ('mlp.fc2', 4, 1)):
                arrays |= {f'{name}.{layer}.weight': (outputs * channels, inputs * channels),
                           f'{name}.{layer}.bias': (outputs * channels,)}
    arrays |= norm_shapes('norm', channels)
    return {name: ('norm' in name and name.endswith('weight')) + random.normal(0, 0.3, shape).astype(np.float32)
            for name, shape in arrays.items()}


def norm_shapes(name, channels):
    return {f'{name}.weight': (channels,), f'{name}.bias': (channels,)}


def dense(weights, name, rows):
    return rows @ weights[f'{name}.weight'].astype(np.float64).T + weights.get(f'{name}.bias', 0)


def normed(weights, name, rows):
    return norm(rows, weights[f'{name}.weight'], weights[f'{name}.bias'], epsilon=1e-5)


def attended(weights, name, grid, heads, shift, solider):
    """Let each token attend to the tokens of its window, whose places after the shift are computed one by one."""
    sizes = grid.shape[:2]
    sides = [WINDOW if solider else min(size, WINDOW) for size in sizes]
    shifts = [shift if solider or size > WINDOW else 0 for size in sizes]
    padded = [-(-size // side) * side for size, side in zip(sizes, sides)]
    channels, places, origins, rows = grid.shape[-1], [], [], []
    for place in np.ndindex(*padded):
        # SOLIDER shifts the padded map; timm shifts the map and pads it then.
        origin = [(each + shift) % size if solider or each < size else each
                  for each, shift, size in zip(place, shifts, padded if solider else sizes)]
        origins.append(tuple(origin))
        places.append(place)
        rows.append(grid[tuple(origin)] if all(each < size for each, size in zip(origin, sizes)) else np.zeros(channels))

    def region(place):
        return [0 if not shift or each < size - side else 1 if each < size - shift else 2
                for each, shift, size, side in zip(place, shifts, padded, sides)]

    def window(place):
        return [each // side for each, side in zip(place, sides)]

    qkv = dense(weights, f'{name}.attn.qkv', np.array(rows)).reshape(len(rows), 3, heads, -1)
    table = weights[f'{name}.attn.relative_position_bias_table'].reshape(13, 13, heads)
    outputs = np.zeros((len(rows), channels))
    for number, place in enumerate(places):
        others = [each for each, other in enumerate(places) if window(other) == window(place)]
        bias = np.array([table[place[0] - places[each][0] + 6, place[1] - places[each][1] + 6]
                         - 100 * (region(places[each]) != region(place)) for each in others])
        keys, values = qkv[others, 1], qkv[others, 2]
        products = np.einsum('hd,thd->th', qkv[number, 0], keys) / np.sqrt(channels // heads) + bias
        attention = np.exp(products) / np.exp(products).sum(axis=0)
        outputs[number] = np.einsum('th,thd->hd', attention, values).reshape(-1)
    result = np.zeros(grid.shape)
    for origin, output in zip(origins, dense(weights, f'{name}.attn.proj', outputs)):
        if all(each < size for each, size in zip(origin, sizes)):
            result[origin] = output
    return result


def forward(weights, image, solider, modulation):
    """Features [h, w, F] of an image; modulation: (scale, offset) of SOLIDER after the first stage."""
    mean, std = STATISTICS['imagenet']
    image = (image.astype(np.float64) / 255 - mean) / std
    height, width = image.shape[0] // 4, image.shape[1] // 4
    patches = image[:4 * height, :4 * width].reshape(height, 4, width, 4, 3)
    kernel, bias = (weights[f'patch_embed.proj.{kind}'] for kind in ('weight', 'bias'))
    net = normed(weights, 'patch_embed.norm', np.einsum('yaxbc,ocab->yxo', patches, kernel) + bias)
    for stage, (heads, depth) in enumerate(zip(HEADS, DEPTHS)):
        if stage:
            net = np.pad(net, ((0, net.shape[0] % 2), (0, net.shape[1] % 2), (0, 0)))
            net = np.concatenate([net[::2, ::2], net[1::2, ::2], net[::2, 1::2], net[1::2, 1::2]], axis=-1)
            name = f'layers.{stage}.downsample'
            net = dense(weights, f'{name}.reduction', normed(weights, f'{name}.norm', net)) * modulation[0] + modulation[1]
        for block in range(depth):
            name = f'layers.{stage}.blocks.{block}'
            net = net + attended(weights, name, normed(weights, f'{name}.norm1', net), heads, 3 * (block % 2), solider)
            hidden = gelu(dense(weights, f'{name}.mlp.fc1', normed(weights, f'{name}.norm2', net)), 'exact')
            net = net + dense(weights, f'{name}.mlp.fc2', hidden)
    return normed(weights, 'norm', net)


def in_solider(weights, semantic):
    """Rename arrays from timm's names to SOLIDER's, whose mergings have neighbours row by row within each channel."""
    names = {'layers.': 'stages.', 'attn.': 'attn.w_msa.', 'mlp.fc1': 'ffn.layers.0.0', 'mlp.fc2': 'ffn.layers.1',
             'patch_embed.proj': 'patch_embed.projection'}
    arrays = {}
    for name, array in weights.items():
        if 'downsample' in name:
            array = array.reshape(*array.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :].swapaxes(-1, -2).reshape(array.shape)
            name = name.replace('layers.1', 'layers.0')
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        arrays[f'norm3.{name.rpartition(".")[2]}' if name.startswith('norm.') else name] = np.ascontiguousarray(array)
    return arrays | semantic | {f'norm0.{kind}': np.zeros(WIDTH, np.float32) for kind in ('weight', 'bias')}


def at_end_of_stage(weights):
    """Rename arrays as the authors have them: a merging belongs to the stage before it."""
    return {name.replace('layers.1.downsample', 'layers.0.downsample'): array for name, array in weights.items()}


@pytest.mark.parametrize('layout, size', [('timm', (56, 42)), ('authors', (76, 57)), ('solider', (76, 57)),
                                          ('without semantics', (60, 28))])
def test_published_weights(layout, size, tmp_path):
    """Windows that do not fit, and maps smaller than a window or of odd sizes."""
    solider, modulation = layout in ('solider', 'without semantics'), (1, 0)
    weights, random = random_weights(), np.random.default_rng(1)
    semantic = {}
    if layout == 'solider':
        semantic = {f'semantic_embed_{letter}.0.{kind}': random.normal(0, 1, shape).astype(np.float32) for letter in 'wb'
                    for kind, shape in (('weight', (2 * WIDTH, 2)), ('bias', (2 * WIDTH,)))}
        scale, offset = (semantic[f'semantic_embed_{letter}.0.weight'] @ [0.2, 0.8]
                         + semantic[f'semantic_embed_{letter}.0.bias'] for letter in 'wb')
        modulation = np.log1p(np.exp(scale)), offset
    arrays = in_solider(weights, semantic) if solider else at_end_of_stage(weights) if layout == 'authors' else weights
    path = str(tmp_path / 'a.safetensors')
    arrays = {f'base.{name}': array for name, array in arrays.items()}
    save_file(arrays | {'classifier.weight': np.zeros((2, 3), np.float32)}, path)
    options = _swin_weights.options(published.shapes(path), 'base.')
    assert options == {'windows': 'solider' if solider else 'timm', 'pixels': 'imagenet'}
    body = tiny((*size, 3), **options)
    left = published.load(path, model.named_variables(body), _swin_weights)
    assert left == ['base.norm0.bias', 'base.norm0.weight'] * solider + ['classifier.weight']
    image = random.uniform(0, 255, (*size, 3)).astype(np.float32)
    expected = forward(weights, image, solider, modulation)
    outputs = body(image[None], training=False)
    np.testing.assert_allclose(outputs['features'][0], expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(outputs['model_output'][0], expected.mean(axis=(0, 1)), atol=1e-5 * abs(expected).max())


def test_nets_of_files():
    """Each file is for one net; files of SOLIDER are recognised by their semantic weights."""
    for net in ('swin_tiny', 'swin_small', 'swin_base'):
        module = plugins.load('nets', net)
        wanted = {name: tuple(variable.shape) for name, variable in
                  model.named_variables(model.without_values(module.body, (64, 32, 3))).items()}
        held = {}
        for name, shape in wanted.items():
            if not name.endswith('/merge/biases'):
                source, = _swin_weights.sources({}, '', {name: shape})[name].names
                kind = name.rpartition('/')[2]
                held[source] = {'weights': (shape[1], shape[0])}.get(kind, shape) if len(shape) == 2 else \
                    (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
        assert published.find_net(held) == {net: ''}
    held = {'base.patch_embed.projection.weight': (96, 3, 4, 4), 'base.semantic_embed_w.0.weight': (192, 2),
            'bottleneck.running_mean': (768,)}
    assert _swin_weights.options(held, 'base.') == {'windows': 'solider', 'pixels': 'half'}
    assert importing._origin(held, 'base.') == 'solider'


def test_sizes_and_options():
    for size, options, match in (((None, None), {}, 'images of one size'), ((3, 8), {}, 'images of one size'),
                                 ((16, 16), {'drop_path': 1.0}, '--drop_path 1 ')):
        with pytest.raises(InputError, match=match):
            tiny((*size, 3), **options)
    rates = [[drop.rate for drop in layer.drops] for layer in tiny((16, 16, 3), drop_path=0.3).layers
             if isinstance(layer, _swin.WindowBlock)]
    np.testing.assert_allclose(rates, [[0, 0], [0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])


def test_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins.load('nets', 'swin_tiny'), 'body', tiny)
    network = model.build('swin_tiny', 'direct', 5, (60, 29, 3), windows='solider')
    random = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(variable + random.normal(0, 0.3, variable.shape))
    images = random.uniform(0, 255, (3, 60, 29, 3)).astype(np.float32)
    expected = network(tf.constant(images), training=False)['emb'].numpy()
    module = export_module.embedder(network, View((60, 29), (60, 29)))
    for ending in ('', '.tflite', '.onnx'):
        with exports.written(str(tmp_path / f'net{ending}'), module) as export:
            np.testing.assert_allclose(export.embed(images), expected, atol=1e-4, err_msg=ending)

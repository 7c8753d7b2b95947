"""Vision transformers against plain NumPy, from the same arrays laid out in each of the formats they are published in."""
import functools
import json
import math
import struct

import numpy as np
import pytest
import tensorflow as tf

from _published_vit import DEPTH, HEADS, PATCH, WIDTH, jax_arrays, random_weights, torch_arrays, written
from nets import _pooling, _published, _vit, _vit_weights
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints
from tripletreid.modeling import export_module, exports, model, pretrained, published, recompute, weight_files
from tripletreid.modeling.inference_flags import View
from tripletreid.modeling.stochastic_depth import Step, StochasticDepth

TINY = _vit.Architecture('tiny', PATCH, WIDTH, HEADS, DEPTH)


def tiny(input_shape, **settings):
    """Build a tiny transformer, given fields of its architecture and options of its body."""
    fields = {name: settings.pop(name) for name in TINY._fields if name in settings}
    return TINY._replace(**fields).body(input_shape, **settings)


# The forward pass.

def norm(rows, scale, offset, epsilon=1e-6):
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=-1, keepdims=True)
    return (rows - mean) / np.sqrt(((rows - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon) * scale + offset


def gelu(x, kind):
    if kind == 'tanh':
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    if kind == 'quick':
        return x / (1 + np.exp(-1.702 * x))
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def dense(rows, layer):
    return rows @ layer[0].astype(np.float64) + layer[1]


def attended(queries, rows, layers, turn=lambda rows: rows):
    """Each of the queries [Q, C] attends to rows [T, C], head by head; `turn` rotates both by their positions."""
    depth, outputs = WIDTH // HEADS, []
    for head in range(HEADS):
        own = slice(head * depth, (head + 1) * depth)
        q, k, v = (dense(each, layers[name])[:, own] for each, name in
                   ((queries, 'query'), (rows, 'key'), (rows, 'value')))
        products = np.exp(turn(q) @ turn(k).T / math.sqrt(depth))
        outputs.append(products / products.sum(axis=1, keepdims=True) @ v)
    return dense(np.concatenate(outputs, axis=1), layers['out'])


def rotation(tokens, height, width):
    """Rotate rows [tokens + height·width, D] of patches: pairs of channels as complex numbers, turned by the coordinates."""
    def turn(rows):
        half = rows.shape[1] // 2
        pairs = rows[:, :half] + 1j * rows[:, half:]
        for y in range(height):
            for x in range(width):
                for channel in range(half):
                    axis, number = divmod(channel, half // 2)
                    coordinate = [(y + 0.5) / height, (x + 0.5) / width][axis]
                    period = 100 ** (number / (half // 2))
                    pairs[tokens + y * width + x, channel] *= np.exp(2j * math.pi * (2 * coordinate - 1) / period)
        return np.concatenate([pairs.real, pairs.imag], axis=1)
    return turn


STATISTICS = {'imagenet': ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 'half': (0.5, 0.5),
              'clip': ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])}


def forward(weights, image, activation='exact', pixels='half', stride=PATCH):
    """The endpoints of a transformer for one image [H, W, 3] of RGB 0..255, patch by patch."""
    mean, std = STATISTICS[pixels]
    image = (image.astype(np.float64) / 255 - mean) / std
    kernel, bias = weights['patches']
    height, width = ((side - PATCH) // stride + 1 for side in image.shape[:2])
    patches = np.array([[np.einsum('hwc,hwcf->f', image[y * stride:][:PATCH, x * stride:][:, :PATCH], kernel) + bias
                         for x in range(width)] for y in range(height)])
    if 'positions' in weights:
        patches += naively_resized(weights['positions'], height, width)
    tokens = list(weights.get('registers', []))
    if 'class_token' in weights:
        tokens.insert(0, weights['class_token'] + weights['class_position'])
    rows = np.array(tokens + list(patches.reshape(-1, WIDTH)))
    normed_rows = functools.partial(norm, epsilon=epsilon_of(weights))
    turn = (lambda rows: rows) if 'positions' in weights else rotation(len(tokens), height, width)
    if 'pre_norm' in weights:
        rows = normed_rows(rows, *weights['pre_norm'])
    for block in weights['blocks']:
        normed = normed_rows(rows, *block['norm1'])
        rows = rows + block['scales'][0] * attended(normed, normed, block, turn)
        hidden = gelu(dense(normed_rows(rows, *block['norm2']), block['fc1']), activation)
        rows = rows + block['scales'][1] * dense(hidden, block['fc2'])
    rows = normed_rows(rows, *weights['norm'])
    patches = rows[len(tokens):]
    found = {'class_token': rows[0], 'patch_mean': patches.mean(axis=0), 'patches': patches.reshape(height, width, WIDTH)}
    if 'map_head' in weights:
        head = weights['map_head']
        probed = attended(head['probe'][None], patches, head)
        found['map'] = (probed + dense(gelu(dense(norm(probed, *head['norm2']), head['fc1']), activation), head['fc2']))[0]
    if 'projection' in weights:
        found['projection'] = rows[0] @ weights['projection']
        found['cls_projection'] = np.concatenate([rows[0], found['projection']])
    return found


def epsilon_of(weights):
    """CLIP and DINOv3 add 1e-5 to variances."""
    return 1e-5 if 'pre_norm' in weights or 'positions' not in weights else 1e-6


def naively_resized(grid, height, width):
    """Bicubic with antialiasing, first one side and then the other, number by number."""
    def kernel(x):
        x = abs(x)
        if x < 1:
            return 1.5 * x ** 3 - 2.5 * x ** 2 + 1
        return -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2 if x < 2 else 0

    def resized(rows, size):
        ratio = len(rows) / size
        if ratio == 1:
            return rows
        outputs = []
        for i in range(size):
            weights = [kernel((j + 0.5 - (i + 0.5) * ratio) / max(ratio, 1)) for j in range(len(rows))]
            outputs.append(sum(weight * row for weight, row in zip(weights, rows)) / sum(weights))
        return np.array(outputs)

    grid = resized(grid.astype(np.float64), height)
    return resized(grid.swapaxes(0, 1), width).swapaxes(0, 1)


# The formats.

def loaded(path, input_shape, **options):
    """Return a tiny transformer with the weights of a file: (body, options of the file, names of its other contents)."""
    file_options = published.options('vit_s16', path) | options
    names = ' '.join(weight_files.shapes(path))
    is_clip, rotary = 'ln_pre' in names or 'norm_pre' in names, 'pos' not in names
    body = tiny(input_shape, layer_scale='ls1' in names or 'gamma_1' in names, pre_norm=is_clip, rotary=rotary,
                projection=6 if is_clip else None, epsilon=1e-5 if is_clip or rotary else 1e-6, **file_options)
    return body, file_options, published.load(path, model.named_variables(body), _vit_weights)


OTHERS_IN_TORCH = {'head.weight': np.zeros((2, WIDTH), np.float32), 'mask_token': np.zeros((1, 1, WIDTH), np.float32)}
CLIP_REID = {f'{name}.{kind}': np.zeros(WIDTH, np.float32) for name in ('bottleneck', 'bottleneck_proj')
             for kind in ('weight', 'bias', 'running_mean', 'running_var')} | {
    'text_encoder.transformer.resblocks.0.ln_1.weight': np.zeros(8, np.float32), 'cv_embed': np.zeros((6, 2), np.float32)}
# Cases: kind of weights; file, its layout, and its other contents; size of the images; options.
CASES = {
    'augreg, square': ({'grid': (4, 4)}, 'a.npz', {}, {'head/kernel': np.zeros((WIDTH, 2))}, (16, 16), {}),
    'of 2020, resampled, odd size': ({'grid': (4, 4)}, 'a.npz', {'old': True, 'prefix': 'opt/target/'},
                                     {'opt/state/step': np.zeros(())}, (30, 19), {}),
    'SigLIP, stacked': ({'grid': (4, 4), 'class_token': False, 'map_head': True}, 'a.npz',
                        {'stacked': True, 'prefix': 'params/img/'},
                        {'params/t': np.zeros(1), 'params/txt/Embed_0/embedding': np.zeros((3, 2))}, (32, 12), {}),
    'big_vision, mean of the patches': ({'grid': (3, 3), 'class_token': False}, 'a.npz', {'prefix': 'params/'}, {},
                                        (12, 12), {}),
    'timm': ({'grid': (4, 4)}, 'a.safetensors', {}, OTHERS_IN_TORCH, (16, 16), {}),
    'timm, its overlapping patches': ({'grid': (4, 4)}, 'a.safetensors', {}, {}, (20, 13), {'patch_stride': 3}),
    'people, not resampled': ({'grid': (8, 4)}, 'a.safetensors', {'prefix': 'base.'},
                              {'base.sie_embed': np.zeros((6, 1, WIDTH), np.float32),
                               'bottleneck.weight': np.zeros(WIDTH, np.float32)}, (32, 16), {}),
    'people, resampled': ({'grid': (8, 4)}, 'a.safetensors', {'prefix': 'module.backbone.'}, {}, (24, 16), {}),
    'DINOv2 with registers': ({'grid': (5, 5), 'registers': 3, 'layer_scale': True}, 'a.safetensors', {'prefix': 'teacher.'},
                              {}, (24, 15), {}),
    'timm, registers and no position of the class token':
        ({'grid': (5, 5), 'registers': 3}, 'a.safetensors', {'registers': 'reg_token', 'with_class_position': False}, {},
         (20, 20), {'pooling': 'avg'}),
    'timm, SigLIP': ({'grid': (4, 4), 'class_token': False, 'map_head': True}, 'a.safetensors', {}, {}, (16, 8), {}),
    'CLIP-ReID': ({'grid': (8, 4), 'projection': 6}, 'a.safetensors', {'prefix': 'image_encoder.', 'clip': True}, CLIP_REID,
                  (32, 16), {'pooling': 'cls_projection'}),
    'OpenAI, resampled': ({'grid': (4, 4), 'projection': 6}, 'a.safetensors', {'prefix': 'visual.', 'clip': True},
                          {'positional_embedding': np.zeros((3, 2), np.float32), 'logit_scale': np.float32([5])}, (32, 16),
                          {'pooling': 'projection'}),
    'timm, CLIP': ({'grid': (4, 4), 'projection': 6}, 'a.safetensors', {}, {}, (16, 16), {}),
    'DINOv3': ({'registers': 2, 'layer_scale': True}, 'a.safetensors', {'registers': 'storage_tokens', 'mask': True},
               {'rope_embed.periods': np.zeros(2, np.float32)}, (32, 16), {}),
    'timm, DINOv3': ({'registers': 2, 'layer_scale': True, 'attention_bias': False}, 'a.safetensors',
                     {'registers': 'reg_token', 'scale': 'gamma_{}'}, {}, (20, 12), {'pooling': 'avg'}),
    'pixels and GELU of one\'s own': ({'grid': (4, 4)}, 'a.safetensors', {}, {}, (16, 16),
                                      {'pixels': 'half', 'gelu': 'tanh'}),
}


@pytest.mark.parametrize('case', CASES)
def test_published_weights(case, tmp_path):
    kind, file, layout, others, size, options = CASES[case]
    weights = random_weights(**kind)
    lay_out = jax_arrays if file.endswith('.npz') else torch_arrays
    path = written(tmp_path / file, {**lay_out(weights, **layout), **others})
    body, file_options, left = loaded(path, (*size, 3), **options)
    assert sorted(left) == sorted(others)
    images = np.random.default_rng(1).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    outputs = body(images, training=False)
    for number, image in enumerate(images):
        expected = forward(weights, image, file_options['gelu'], file_options['pixels'],
                           options.get('patch_stride', PATCH))
        pooling = file_options.get('pooling', 'cls')
        expected['model_output'] = expected[{'cls': 'class_token', 'avg': 'patch_mean'}.get(pooling, pooling)]
        assert set(outputs) <= set(expected)
        for name, output in outputs.items():
            error = abs(output[number].numpy() - expected[name]).max()
            assert error < 1e-5 * abs(expected[name]).max(), name


def test_options_of_files():
    file_options = {}
    for case, (kind, file, layout, others, _, _) in CASES.items():
        lay_out = jax_arrays if file.endswith('.npz') else torch_arrays
        held = {name: array.shape for name, array in (lay_out(random_weights(**kind), **layout) | others).items()}
        options = _vit_weights.options(held, layout.get('prefix', ''))
        file_options[case] = ' '.join(f'{name}={value}' for name, value in options.items())
    jax_options, torch_options = 'registers=0 gelu=tanh pixels=half', 'gelu=exact pixels=imagenet'
    assert file_options['augreg, square'] == file_options['of 2020, resampled, odd size'] == f'class_token=yes {jax_options}'
    assert file_options['SigLIP, stacked'] == f'class_token=no {jax_options} pooling=map'
    assert file_options['big_vision, mean of the patches'] == f'class_token=no {jax_options} pooling=avg'
    assert file_options['people, resampled'] == file_options['timm'] == f'class_token=yes registers=0 {torch_options}'
    assert file_options['DINOv2 with registers'] == f'class_token=yes registers=3 {torch_options}'
    assert file_options['CLIP-ReID'] == 'class_token=yes registers=0 gelu=quick pixels=half'
    assert file_options['OpenAI, resampled'] == 'class_token=yes registers=0 gelu=quick pixels=clip'
    assert file_options['timm, CLIP'] == 'class_token=yes registers=0 gelu=exact pixels=clip'
    assert file_options['DINOv3'] == file_options['timm, DINOv3'] == f'class_token=yes registers=2 {torch_options}'
    assert file_options['timm, SigLIP'] == 'class_token=no registers=0 gelu=exact pixels=half pooling=map'


@pytest.mark.parametrize('shape', [(4, 4, 8, 3), (16, 9, 5, 9), (1, 2, 3, 1), (37, 37, 18, 9)])
def test_position_embeddings_are_resampled(shape):
    grid = np.random.default_rng(0).normal(size=(*shape[:2], 2)).astype(np.float32)
    np.testing.assert_allclose(_published.resized(grid, *shape[2:]), naively_resized(grid, *shape[2:]), atol=1e-6)
    np.testing.assert_allclose(_published.resized(np.ones((*shape[:2], 1)), *shape[2:]), 1, rtol=1e-6)


def test_a_checkpoint_of_images_of_another_size(tmp_path):
    run_variables, larger = (model.named_variables(tiny(size)) for size in ((32, 16, 3), (48, 20, 3)))
    checkpoints.save(str(tmp_path), 3, {name: tf.convert_to_tensor(variable) for name, variable in run_variables.items()})
    pretrained.load_checkpoint(checkpoints.find(str(tmp_path)), larger, _vit_weights)
    for name, variable in run_variables.items():
        expected = naively_resized(variable.numpy(), 12, 5) if name == 'tiny/tokens/positions' else variable
        np.testing.assert_allclose(larger[name], expected, atol=1e-6 * name.endswith('positions'))
    with pytest.raises(InputError, match=r'other shapes for tiny/tokens/positions \[12, 5, 16\] \(there: \[8, 4, 16\]\)'):
        pretrained.load_checkpoint(checkpoints.find(str(tmp_path)), larger, None)


@pytest.mark.parametrize('dtype', ['F32', 'F16', 'BF16', 'F64'])
def test_stored_precisions(dtype, tmp_path):
    values = np.array([[1.5, -2.25], [0.125, 1e3]], np.float32)
    content = {'F32': values.tobytes(), 'F16': values.astype(np.float16).tobytes(), 'F64': values.astype(float).tobytes(),
               'BF16': (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()}[dtype]
    path = str(tmp_path / 'a.safetensors')
    write_safetensors(path, {'a': {'dtype': dtype, 'shape': [2, 2], 'data_offsets': [0, len(content)]}}, content)
    assert weight_files.shapes(path) == {'a': (2, 2)}
    np.testing.assert_array_equal(weight_files.read(path, ['a'])['a'], values)
    if dtype == 'BF16':  # As JAX's codebases store them.
        np.savez(tmp_path / 'a.npz', a=np.frombuffer(content, 'V2').reshape(2, 2))
        array = weight_files.read(str(tmp_path / 'a.npz'), ['a'])['a']
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values)


def write_safetensors(path, header, content, length=None):
    header = json.dumps(header).encode()
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', length or len(header)) + header + content)


def test_files_that_are_no_weights(tmp_path):
    path = str(tmp_path / 'a.safetensors')
    for shape, end, length in (([1 << 40], 4 << 40, None), ([2], 8, None), ([1], 4, 1 << 40), ([1], 4, 1 << 26),
                               ([1 << 62, 1 << 62], 4, None)):
        write_safetensors(path, {'a': {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, end]}}, b'1234', length)
        with pytest.raises(InputError, match='a.safetensors is no readable .safetensors file'):
            weight_files.shapes(path)
    whole = jax_arrays(random_weights((4, 4)))
    np.savez(tmp_path / 'a.npz', **whole)
    (tmp_path / 'torn.npz').write_bytes((tmp_path / 'a.npz').read_bytes()[:-2000])
    with pytest.raises(InputError, match='torn.npz is no readable'):
        weight_files.shapes(str(tmp_path / 'torn.npz'))
    for name in ('gone.npz', 'gone.safetensors'):
        with pytest.raises(InputError, match=f'There is no file .*{name}'):
            weight_files.shapes(str(tmp_path / name))
    for name in ('a.pth', 'a.pt', 'osnet.pth.tar', 'pytorch_model.bin'):
        with pytest.raises(InputError, match=rf"(?s){name} is a file of PyTorch.*torch.load\('{name}'.*save_file"):
            weight_files.shapes(str(tmp_path / name))


def test_weights_that_do_not_fit(tmp_path):
    weights = random_weights((4, 4))
    good = torch_arrays(weights)
    wider = {name: np.concatenate([array] * 2, axis=0) if 'fc1' in name else array for name, array in good.items()}
    wrong_patch = good | {'patch_embed.proj.weight': np.zeros((WIDTH, 3, 5, 5), np.float32)}
    block = {f'blocks.2.{name[9:]}': array for name, array in good.items() if name.startswith('blocks.1')}
    cases = {
        'wider': (wider, {}, r'no way to make .*tiny/block_1/fc1/biases \(64,\) of blocks.0.mlp.fc1.bias \(128,\)'),
        'patch': (wrong_patch, {}, r'tiny/patches/weights \(4, 4, 3, 16\) of patch_embed.proj.weight \(16, 3, 5, 5\)'),
        'deeper': (good | block, {}, r'holds blocks.2.attn.proj.bias \(16,\), .* and 9 more, which this net does not have'),
        'shallower': ({name: array for name, array in good.items() if 'blocks.1' not in name}, {},
                      'lacks blocks.1.attn.proj.bias, .* and 9 more'),
        'no head': (good, {'pooling': 'map', 'class_token': 'yes'}, 'lacks attn_pool.kv.bias, '),
        'no grid': (good | {'pos_embed': np.zeros((1, 14, WIDTH), np.float32)}, {},
                    r'tiny/tokens/positions \(4, 4, 16\) of pos_embed \(1, 14, 16\)'),
        'registers': (torch_arrays(random_weights((4, 4), registers=2)), {'registers': 0},
                      r'holds register_tokens \(1, 2, 16\), which'),
        'not finite': (good | {'norm.bias': np.full(WIDTH, np.nan, np.float32)}, {}, 'tiny/norm/beta is not finite'),
        'another net': ({'conv1.weight': np.zeros((4, 3, 7, 7), np.float32)}, {}, 'lacks .* and it holds conv1.weight'),
    }
    for name, (arrays, options, match) in cases.items():
        path = written(tmp_path / f'{name}.safetensors', arrays)
        with pytest.raises(InputError, match=match):
            loaded(path, (16, 16, 3), **options)


def test_options_that_a_transformer_has_not():
    for shape, options, match in (
            ((None, None, 3), {}, 'avgpool is not for it'), ((3, 16, 3), {}, 'takes no images of 3x16'),
            ((16, 16, 3), {'pooling': 'gem'}, 'tiny has no --pooling gem: choose avg, cls or map'),
            ((16, 16, 3), {'pooling': 'projection'}, 'no --pooling projection: choose avg, cls or map'),
            ((16, 16, 3), {'patch_stride': 5}, 'gaps'), ((16, 16, 3), {'drop_path': 1.0}, '--drop_path 1 '),
            ((16, 16, 3), {'class_token': 'no'}, '--pooling cls needs the class token')):
        with pytest.raises(InputError, match=match):
            tiny(shape, **options)
    with pytest.raises(InputError, match='mnist has no choice of --gelu and --registers'):
        model.build('mnist', 'direct', 2, (28, 28, 3), gelu='tanh', registers=2)
    with pytest.raises(InputError, match='no --pooling map: choose avg or gem'):
        _pooling.pooled(None, 'map')


# Stochastic depth.

def test_stochastic_depth_leaves_out_whole_images_at_its_rate():
    layer = StochasticDepth(0.25, 3)
    ones = tf.ones((4000, 2, 3))
    with Step(tf.constant([1, 2]), tf.range(4000), 4000):
        found = layer(ones, training=True).numpy()
        again = layer(ones, training=True).numpy()
        other_branch = StochasticDepth(0.25, 4)(ones, training=True).numpy()
        assert (layer(ones, training=False).numpy() == 1).all()
        # Two devices, each with every second image, draw the numbers of one device.
        for own in (tf.range(0, 4000, 2), tf.range(1, 4000, 2)):
            with Step(tf.constant([1, 2]), own, 4000):
                np.testing.assert_array_equal(layer(ones[:2000], training=True), found[own.numpy()])
    with Step(tf.constant([1, 3]), tf.range(4000), 4000):
        next_step = layer(ones, training=True).numpy()
    assert set(np.unique(found)) == {0, np.float32(4 / 3)} and (found == again).all()
    assert (found == found[:, :1, :1]).all()
    for each in (found, next_step, other_branch):
        assert abs((each[:, 0, 0] == 0).mean() - 0.25) < 0.03
    for other in (next_step, other_branch):  # Independent draws: both are zero with the product of the probabilities.
        assert abs(((other == 0) & (found == 0))[:, 0, 0].mean() - 0.25 ** 2) < 0.02


def test_drop_path_rises_with_depth():
    body = tiny((16, 16, 3), drop_path=0.3)
    rates = [[drop.rate for drop in layer.drops] for layer in body.layers if isinstance(layer, _vit.Block)]
    assert rates == [[0, 0], [0.3, 0.3]]
    numbers = [drop.number for layer in body.layers if isinstance(layer, _vit.Block) for drop in layer.drops]
    assert numbers == [0, 1, 2, 3]


# As any other net.

def test_initial_weights():
    body = tiny((32, 32, 3), registers=2, layer_scale=True)
    variables = {name.removeprefix('tiny/'): variable.numpy() for name, variable in model.named_variables(body).items()}
    for name, value in variables.items():
        if name.endswith(('weights', 'positions')):
            assert np.std(value) == pytest.approx(0.02, rel=0.15), name
        elif name.endswith(('biases', 'beta')):
            assert not value.any(), name
        elif 'scale' in name:
            assert (value == np.float32(1e-5)).all(), name
    assert not np.array_equal(variables['block_1/qkv/weights'], variables['block_2/qkv/weights'])
    assert variables['tokens/positions'].shape == (8, 8, WIDTH)


def test_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins.load('nets', 'vit_s16'), 'body', TINY._replace(layer_scale=True).body)
    network = model.build('vit_s16', 'direct', 5, (16, 11, 3), registers=1, patch_stride=3, pooling='map', class_token='yes')
    random = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(variable + random.normal(0, 0.3, variable.shape))
    images = random.uniform(0, 255, (3, 16, 11, 3)).astype(np.float32)
    expected = network(images, training=False)['emb'].numpy()
    module = export_module.embedder(network, View((16, 11), (16, 11)))
    for ending in ('', '.tflite', '.onnx'):
        with exports.written(str(tmp_path / f'net{ending}'), module) as export:
            np.testing.assert_allclose(export.embed(images), expected, atol=1e-4, err_msg=ending)


def test_16_bits_are_near_float32():
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    weights = tiny((16, 16, 3), pooling='map').get_weights()
    random = np.random.default_rng(1)
    weights = [weight + random.normal(0, 0.1, weight.shape) for weight in weights]
    found = {}
    for each in ('none', 'bfloat16', 'float16'):
        model.set_precision(each)
        try:
            body = tiny((16, 16, 3), pooling='map')
        finally:
            model.set_precision('none')
        body.set_weights(weights)
        found[each] = body(images, training=False)
        assert {output.dtype for output in found[each].values()} == {tf.float32}
        assert {variable.dtype for variable in body.variables} == {'float32'}
    for name, exact in found.pop('none').items():
        for precision, outputs in found.items():
            error = abs(outputs[name].numpy() - exact.numpy()).max()
            assert 0 < error < 0.03 * abs(exact.numpy()).max(), (precision, name)


def test_what_is_recomputed_skips_the_same_branches(monkeypatch):
    monkeypatch.setattr(plugins.load('nets', 'vit_s16'), 'body', TINY.body)
    network = model.build('vit_s16', 'direct', 4, (16, 8, 3), drop_path=0.5)
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (8, 16, 8, 3)).astype(np.float32))
    variables = [variable.value for variable in network.trainable_variables]

    @tf.function(autograph=False)
    def both(seed):
        found = []
        for forward in (network, recompute.recomputing(network, ['emb'])):
            draws = Step(seed, tf.range(8), 8)
            with draws, tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(forward(images, training=True)['emb']))
            with draws:
                found.append([loss, *tape.gradient(loss, variables)])
        return found

    found = both(tf.constant([0, 1]))
    for kept, again in zip(*found):
        np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-5 * abs(kept.numpy()).max())
    assert both(tf.constant([0, 2]))[0][0] != found[0][0], 'nothing was skipped'


@pytest.mark.parametrize('precision', ('bfloat16', 'float16'))
@pytest.mark.parametrize('pooling', ('cls', 'map'))
def test_recomputed_activations_in_16_bits_equal_kept_ones(precision, pooling):
    """Tensors between blocks are float32, also where a part of the network begins."""
    model.set_precision(precision)
    try:
        network = tiny((16, 8, 3), pooling=pooling)
        ends = [network.output['model_output']]
        assert {tensor.dtype for tensor in (*recompute.cuts_of(ends), *ends)} == {'float32'}
        forward = recompute.recomputing(network, ['model_output'])
    finally:
        model.set_precision('none')
    images = tf.random.stateless_uniform([2, 16, 8, 3], [0, 0], 0, 255)
    outputs = [tf.function(form)(images, training=True)['model_output'] for form in (network, forward)]
    assert outputs[1].dtype == tf.float32
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-2)

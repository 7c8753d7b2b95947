"""Published weights as experiment roots: nets, heads, prefixes and settings that their files imply."""
import json
import zipfile

import keras
import numpy as np
import pytest

import import_model
from _published_torch import norm_shapes, osnet_shapes, random_weights, resnet_shapes, saved
from _runs import Run, ended_in_one_sentence, make_people, train_arguments
from nets import _torch_weights
from test_torch_nets import osnet
from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints
from tripletreid.modeling import importing, inference, model, published, weight_files

CHANNELS = (16, 64, 96, 128)
# Names of a body and its surroundings in files of each code base, {name: shape}.
RESNET = {'conv1.weight': (64, 3, 7, 7), 'bn1.running_mean': (64,), 'layer1.0.bn1.weight': (64,)}
TRANSFORMER = {'patch_embed.proj.weight': (768, 3, 16, 16), 'pos_embed': (1, 129, 768), 'cls_token': (1, 1, 768)}
SOLIDER = {'patch_embed.projection.weight': (96, 3, 4, 4), 'semantic_embed_w.0.weight': (192, 2)}
CLIP = {'conv1.weight': (768, 3, 16, 16), 'positional_embedding': (129, 768), 'class_embedding': (768,)}


def under(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def osnet_file(tmp_path_factory):
    """Weights of OSNet x0.25 as torchreid saves them from several GPUs, and (path, {name: array})."""
    weights = random_weights(osnet_shapes(CHANNELS, dim=24))
    return saved(tmp_path_factory.mktemp('weights') / 'osnet.safetensors', weights, 'module.'), weights


def import_file(*arguments):
    run = Run('import_model.py', *arguments)
    assert run.wait() == 0, run.output
    return run.output


def test_a_file_becomes_a_root_with_its_head(osnet_file, tmp_path):
    path, weights = osnet_file
    root = tmp_path / 'root'
    output = import_file(path, '--experiment_root', root, '--metric', 'euclidean')
    for line in ('--model_name osnet_x0_25 (read from the file)', '--head_name linear_bn_relu (read from the file)',
                 '--embedding_dim 24 (read from the file)', '--net_input_height 256 (default)',
                 '--metric euclidean (given)', 'not used: module.classifier.bias, module.classifier.weight'):
        assert line in output
    stored = json.loads((root / 'args.json').read_text())
    assert stored['metric'] == 'euclidean' and stored['train_set'] is None and stored['initial_checkpoint'] == path
    start, = json.loads((root / 'provenance.json').read_text())
    assert list(start['sha256']) == [path] and len(start['sha256'][path]) == 64

    network, checkpoint = inference.from_experiment(str(root), input_size=(64, 32))
    assert checkpoint == checkpoints.prefix(str(root), 0)
    images = np.random.default_rng(1).uniform(0, 255, (2, 64, 32, 3)).astype(np.float32)
    features = osnet(weights, images)['conv5'].mean(axis=(2, 3))
    dense = features @ weights['fc.0.weight'].T + weights['fc.0.bias']
    normed = (dense - weights['fc.1.running_mean']) / np.sqrt(weights['fc.1.running_var'] + 1e-5)
    expected = np.maximum(normed * weights['fc.1.weight'] + weights['fc.1.bias'], 0)
    np.testing.assert_allclose(network(images, training=False)['emb'], expected, atol=1e-4 * abs(expected).max())

    # It says that it was never trained, is no run to resume, and is never overwritten.
    make_people(tmp_path, identities=1, images=1)
    run = Run('embed.py', '--experiment_root', root, '--dataset', tmp_path / 'people.csv', '--image_root', tmp_path)
    assert run.wait() == 0 and f'weights imported from {path}, never trained here' in run.output, run.output
    ended_in_one_sentence(Run('train.py', '--experiment_root', root, '--resume'), 'never trained here',
                          f'--initial_checkpoint {root} --initial_head')
    ended_in_one_sentence(Run('import_model.py', path, '--experiment_root', root), f'{root} is not empty')


def test_training_starts_with_the_head_of_a_root(tmp_path):
    """Net, head and size follow from the root, unless they are given."""
    people, first, second = make_people(tmp_path), tmp_path / 'first', tmp_path / 'second'
    assert Run('train.py', *train_arguments(people, first, 1)).wait() == 0
    common = ['--train_set', people / 'people.csv', '--image_root', people, '--batch_p', 2, '--batch_k', 2,
              '--train_iterations', 1, '--decay_start_iteration', -1, '--initial_checkpoint', first, '--initial_head']
    run = Run('train.py', '--experiment_root', second, *common)
    assert run.wait() == 0 and 'Initialised body and head from' in run.output, run.output
    stored = json.loads((second / 'args.json').read_text())
    assert [stored[name] for name in ('model_name', 'head_name', 'embedding_dim', 'net_input_height', 'pre_crop_width')] \
        == ['mnist', 'direct', 4, 28, 32]
    before, after = (checkpoints.open_reader(str(path)) for path in (first / 'checkpoint-1', second / 'checkpoint-0'))
    for name in ('emb/weights', 'mnist/fc4/weights'):
        np.testing.assert_array_equal(before.get_tensor(name), after.get_tensor(name))
    ended_in_one_sentence(Run('train.py', '--experiment_root', tmp_path / 'other', *common, '--head_name', 'fc1024'),
                          'lacks fully_connected/weights')
    assert not (tmp_path / 'other' / 'args.json').exists()


def test_one_rule_finds_every_prefix(osnet_file):
    body = model.without_values(plugins.load('nets', 'osnet_x0_25').body, (64, 32, 3))
    wanted = {name: tuple(variable.shape) for name, variable in model.named_variables(body).items()}
    shapes = {name: shape for name, shape in osnet_shapes(CHANNELS).items() if not name.endswith('tracked')}
    for prefix in ('', 'module.', '_orig_mod.', 'state_dict.module.', 'student.backbone.', 'model.net.trunk.encoder.'):
        fit = published.fit(under(prefix, shapes) | {'head.weight': (3, 4)}, _torch_weights, wanted)
        assert fit.is_complete and fit.prefix == prefix
    both = under('student.', shapes) | under('teacher.backbone.', shapes)
    assert published.fit(both, _torch_weights, wanted).prefix == 'teacher.backbone.'
    with pytest.raises(InputError, match='2 copies of the net, under first. and second.: keep one'):
        published.fit(under('first.', shapes) | under('second.', shapes), _torch_weights, wanted)


HEADS = {
    'strong baseline': ('bnneck', 'base.', norm_shapes('bottleneck', 6), 6),
    'from several GPUs': ('bnneck', 'module.base.', norm_shapes('module.bottleneck', 6), 6),
    'fast-reid': ('bnneck', 'backbone.', norm_shapes('heads.bottleneck.0', 6), 6),
    'fast-reid of 2020': ('bnneck', 'backbone.', norm_shapes('heads.bnneck', 6), 6),
    'fast-reid, other dimension': ('bnneck', 'backbone.', {'heads.bottleneck.0.weight': (4, 6, 1, 1),
                                                           **norm_shapes('heads.bottleneck.1', 4)}, 4),
    'layumi': ('bnneck', 'model.', {'classifier.add_block.0.weight': (4, 6), 'classifier.add_block.0.bias': (4,),
                                    **norm_shapes('classifier.add_block.1', 4)}, 4),
    'torchreid': ('linear_bn_relu', '', {'fc.0.weight': (4, 6), 'fc.0.bias': (4,), **norm_shapes('fc.1', 4)}, 4),
}


@pytest.mark.parametrize('case', HEADS)
def test_heads(case):
    name, prefix, shapes, dim = HEADS[case]
    weights = random_weights(shapes)
    modules = published.find_head(shapes, prefix, name)
    features = keras.Input([6])
    network = keras.Model(features, plugins.load('heads', name).head({'model_output': features}, dim)['emb'])
    variables = model.named_variables(network)
    for variable, source in published.head_sources(shapes, modules, variables).items():
        shape = tuple(variables[variable].shape)
        variables[variable].assign(source.convert(shape, *(weights[each] for each in source.names)))
    rows = np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)
    layers = list(dict.fromkeys(each.rpartition('.')[0] for each in shapes))
    expected = rows
    for layer in layers:
        scale, offset = weights[f'{layer}.weight'], weights.get(f'{layer}.bias', 0)
        if f'{layer}.running_mean' in weights:
            expected = (expected - weights[f'{layer}.running_mean']) / np.sqrt(weights[f'{layer}.running_var'] + 1e-5)
            expected = expected * scale + offset
        else:
            expected = expected @ scale.reshape(scale.shape[:2]).T + offset
    expected = np.maximum(expected, 0) if name == 'linear_bn_relu' else expected
    np.testing.assert_allclose(network(rows), expected, atol=1e-5)


ORIGINS = {
    'torchreid': ('', osnet_shapes(CHANNELS)),
    'fast_reid': ('backbone.', under('backbone.', RESNET) | norm_shapes('heads.bottleneck.0', 2048)),
    'strong_baseline': ('base.', under('base.', RESNET) | norm_shapes('bottleneck', 2048)),
    'transreid': ('base.', under('base.', TRANSFORMER) | norm_shapes('bottleneck', 768)),
    'clip_reid': ('image_encoder.', under('image_encoder.', CLIP) | norm_shapes('bottleneck', 768)
                  | norm_shapes('bottleneck_proj', 512)),
    'solider': ('base.', under('base.', SOLIDER) | norm_shapes('bottleneck', 768)),
    'clip': ('visual.', under('visual.', CLIP)),
    'layumi': ('model.', under('model.', RESNET) | norm_shapes('classifier.add_block.1', 512)),
    'plain': ('', RESNET),
}


def test_origins():
    """Exactly one recognises each file; its settings are flags with values that train.py takes."""
    assert set(ORIGINS) == set(plugins.choices('origins'))
    for name, (prefix, held) in ORIGINS.items():
        recognising = [each for each in ORIGINS if plugins.load('origins', each).recognises(held, prefix)]
        assert recognising == [name] * (name != 'plain')
        origin = plugins.load('origins', name)
        assert set(origin.HEADS) <= set(plugins.choices('heads'))
        found = importing.Plan('a', name, {key: importing.Setting(value, '') for key, value in origin.SETTINGS.items()})
        args = import_model.make_parser().parse_args(['a', '--experiment_root', 'b'])
        stored = import_model.arguments_of_root(args, found)
        assert {key: getattr(stored, key) for key in origin.SETTINGS} == origin.SETTINGS
    fast_reid = ORIGINS['fast_reid'][1] | {'heads.pool_layer.p': (1,)}
    assert plugins.load('origins', 'fast_reid').options(fast_reid, 'backbone.') == {'pooling': 'gem'}
    assert _torch_weights.options(fast_reid, 'backbone.')['stem'] == 'fast_reid'
    assert _torch_weights.options(ORIGINS['strong_baseline'][1], 'base.')['stem'] == 'strong_baseline'
    assert 'stem' not in _torch_weights.options(ORIGINS['torchreid'][1], '')


def test_signatures_are_of_one_net_each():
    """A file that has the signature of a net has all arrays of the signature under the names that the net gives them."""
    for net in plugins.choices('nets'):
        layout = published.layout_of(net)
        if not layout:
            continue
        body = model.without_values(plugins.load('nets', net).body, (256, 128, 3))
        wanted = {name: tuple(variable.shape) for name, variable in model.named_variables(body).items()}
        for signature in plugins.load('nets', net).SIGNATURES:
            needed = {name for source in layout.sources(signature, '', wanted).values() for name in source.names}
            assert set(signature) <= needed, net


@pytest.mark.parametrize('positions, expected', [
    (129, {'net_input_height': 256, 'net_input_width': 128}),
    (193, {'net_input_height': 384, 'net_input_width': 128}),
    (211, {'net_input_height': 256, 'net_input_width': 128, 'patch_stride': 12}),
    (197, {'net_input_height': 224, 'net_input_width': 224})])
def test_position_embeddings_imply_the_size_of_images(positions, expected):
    held = under('base.', {**TRANSFORMER, 'pos_embed': (1, positions, 768)})
    layout = published.layout_of('vit_b16')
    assert layout.input_size(held, 'base.') == expected
    # The positions fit a net of that size, with its class token and its stride.
    wanted = published._wanted('vit_s16', {**layout.options(held, 'base.'), **expected})
    height, width, _ = wanted['vit_s16/tokens/positions']
    assert height * width + 1 == positions


def test_the_global_branch_of_transreid_replaces_the_last_block():
    layout = published.layout_of('vit_b16')
    held = under('base.', TRANSFORMER) | {'b1.0.norm1.weight': (768,), 'b1.1.weight': (768,),
                                          'base.blocks.10.norm1.weight': (768,), 'base.blocks.11.norm1.weight': (768,)}
    wanted = {f'vit_b16/{name}': (768,) for name in ('block_11/norm1/gamma', 'block_12/norm1/gamma', 'norm/gamma')}
    sources = layout.sources(held, 'base.', {'vit_b16/tokens/positions': (16, 8, 768), **wanted})
    assert [sources[name].names for name in wanted] == [('base.blocks.10.norm1.weight',), ('b1.0.norm1.weight',),
                                                        ('b1.1.weight',)]
    assert layout.is_unneeded('base.blocks.11.norm1.weight', held, 'base.')
    assert not layout.is_unneeded('base.blocks.10.norm1.weight', held, 'base.')


def test_pixels_of_a_file(tmp_path):
    def pixels(mean, std):
        path = saved(tmp_path / 'a.safetensors', {'pixel_mean': np.float32(mean).reshape(1, 3, 1, 1),
                                                  'pixel_std': np.float32(std).reshape(1, 3, 1, 1)})
        return importing._pixels(path, published.shapes(path))

    assert pixels([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])['pixels'].value == 'imagenet'
    assert pixels([127.5] * 3, [127.5] * 3)['pixels'].value == 'half'
    with pytest.raises(InputError, match='for which there is no choice of --pixels'):
        pixels([0, 0, 0], [1, 1, 1])


def test_files_that_are_refused(osnet_file, tmp_path):
    def refused(path, *parts, **given):
        with pytest.raises(InputError) as error:
            importing.plan(str(path), given)
        for part in parts:
            assert part in str(error.value), (part, str(error.value))

    refused(saved(tmp_path / 'a.safetensors', random_weights(resnet_shapes(False, (1, 1, 1, 1)))),
            'a file of no net of nets/', 'and 84 more')
    refused(osnet_file[0], 'does not fit the net osnet_x1_0. It is a file of osnet_x0_25: choose --model_name osnet_x0_25',
            model_name='osnet_x1_0')
    (tmp_path / 'a.h5').write_bytes(b'1')
    refused(tmp_path / 'a.h5', 'add --model_name, one of convnext_tiny')
    (tmp_path / 'args.json').write_text('{}')
    refused(tmp_path, 'is an experiment root already')
    whole = (tmp_path / 'a.safetensors').read_bytes()
    (tmp_path / 'torn.safetensors').write_bytes(whole[:-100])
    refused(tmp_path / 'torn.safetensors', 'is no readable .safetensors file')
    ended_in_one_sentence(Run('import_model.py', tmp_path / 'torn.safetensors', '--experiment_root', tmp_path / 'root'),
                          'is no readable .safetensors file')
    assert not (tmp_path / 'root').exists()


@pytest.mark.parametrize('name, target', [
    ('osnet_x1.0_msmt17.pth.tar-60', 'osnet_x1.0_msmt17.safetensors'), ('a.pth', 'a.safetensors'), ('a.pt', 'a.safetensors'),
    ('ckpt.t7', 'ckpt.safetensors'), ('a.pkl', 'a.safetensors'), ('pytorch_model.bin', 'pytorch_model.safetensors')])
def test_lines_that_convert_files_of_pytorch(name, target, tmp_path):
    with pytest.raises(InputError) as error:
        weight_files.refuse_pytorch(str(tmp_path / name))
    assert f"torch.load('{name}', map_location='cpu', weights_only=True)" in str(error.value)
    assert f"dict(tensors(found)), '{target}')" in str(error.value)
    lines = str(error.value).partition(':\n')[2]
    compile('if True:\n' + lines, 'lines', 'exec')


def test_files_of_pytorch_are_known_by_their_content(tmp_path):
    for entry, loader in (('data.pkl', 'torch.load('), ('constants.pkl', 'torch.jit.load(')):
        with zipfile.ZipFile(tmp_path / 'a.ckpt', 'w') as file:
            file.writestr(f'archive/{entry}', b'')
        with pytest.raises(InputError) as error:
            importing.plan(str(tmp_path / 'a.ckpt'), {})
        assert f"found = {loader}'a.ckpt'" in str(error.value)
    (tmp_path / 'b').write_bytes(b'\x80\x02}q\x00.')
    with pytest.raises(InputError, match='is a file of PyTorch'):
        weight_files.refuse_pytorch(str(tmp_path / 'b'))
    weight_files.refuse_pytorch(str(tmp_path / 'tensorflow.ckpt'))


def test_a_checkpoint_alone(tmp_path):
    """A run whose args.json is lost: net, head and dimension follow from the variables."""
    people, run_root = make_people(tmp_path), tmp_path / 'run'
    assert Run('train.py', *train_arguments(people, run_root, 1)).wait() == 0
    (run_root / 'args.json').unlink()
    output = import_file(run_root / 'checkpoint-1', '--experiment_root', tmp_path / 'root', '--net_input_height', 28,
                         '--net_input_width', 28)
    for line in ('--model_name mnist (read from the file)', '--head_name direct (read', '--embedding_dim 4 (read'):
        assert line in output
    expected, found = (checkpoints.open_reader(str(path)).get_tensor('emb/weights')
                       for path in (run_root / 'checkpoint-1', tmp_path / 'root' / 'checkpoint-0'))
    np.testing.assert_array_equal(found, expected)

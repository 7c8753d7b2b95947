"""Exports: every format gives embed.py's embeddings, wrong or half-written ones are never left, and nobody needs us."""
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import types
import typing

import h5py
import keras
import numpy as np
import pytest
import scipy.spatial.distance
import tensorflow as tf
from PIL import Image

import embed
import evaluate
import freeze
import search
from _runs import Run
from conftest import ROOT, assert_one_sentence, run_script
from nets import _applications, _options, _resnet, mobilenet_v1_1_224, resnet_v1_50
from tripletreid import provenance
from tripletreid.errors import InputError
from tripletreid.evaluation import results
from tripletreid.experiment import checkpoints
from tripletreid.input_pipeline import images
from tripletreid.modeling import export_check, export_module, exports, inference, inference_flags, model, quantization
from tripletreid.modeling.pixel_statistics import PIXEL_STATISTICS

pytestmark = pytest.mark.long

ENDINGS = ['', '.tflite', '.onnx', '.pb']


def pictures(count, size, seed):
    """Return images of a few colours, which deep nets separate better than noise: [B, H, W, 3] float32."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 4, 2, 3))
    return np.float32(coarse.repeat(size[0] // 4, axis=1).repeat(size[1] // 2, axis=2))


def write_experiment(root, net, head, net_size, pre_crop, **options):
    """An experiment root with a model whose batch norm statistics and offsets differ from the initial ones."""
    root.mkdir()
    keras.utils.set_random_seed(0)  # freeze.py may refuse an int8 export of unlucky weights.
    network = model.build(net, head, 6, (*net_size, 3), **options)
    random = np.random.default_rng(0)
    for layer in network.layers:
        layer.momentum = 0  # The statistics become the next batch's.
    network(pictures(16, net_size, seed=0), training=True)
    for name, variable in model.named_variables(network).items():
        if name.endswith(('beta', 'biases')):
            variable.assign(random.normal(0, 0.1, variable.shape))
    checkpoints.save(str(root), 7, model.named_variables(network))
    (root / 'args.json').write_text(json.dumps({
        'model_name': net, 'head_name': head, 'embedding_dim': 6, 'net_input_height': net_size[0], 'net_input_width':
        net_size[1], 'pre_crop_height': pre_crop[0], 'pre_crop_width': pre_crop[1], 'image_root': str(root.parent),
        **options}))
    return root


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with images of several sizes, their csv file, and a small experiment."""
    folder = tmp_path_factory.mktemp('freeze')
    random = np.random.default_rng(1)
    for number in range(5):
        coarse = Image.fromarray(random.integers(0, 256, (6, 5, 3), np.uint8))
        coarse.resize((30 + number, 50 - number)).save(folder / f'{number}.png')
    (folder / 'images.csv').write_text(''.join(f'{number},{number}.png\n' for number in range(5)))
    write_experiment(folder / 'run', 'mnist', 'fc1024_normalize', (32, 16), (37, 19))
    return folder


def pixels(folder):
    return [np.asarray(Image.open(folder / f'{number}.png')) for number in range(5)]


def run_freeze(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['freeze.py', *map(str, arguments)])
    freeze.main()


def left_in(folder):
    return sorted(os.listdir(folder))


@pytest.fixture(scope='module')
def plain_exports(folder):
    """Return exports in all formats, by the script itself, and its output."""
    paths = [folder / f'plain{ending}' for ending in ENDINGS]
    run = Run('freeze.py', '--experiment_root', folder / 'run', '--frozen_model_path', *paths, '--check_dataset',
              folder / 'images.csv', '--benchmark', '--batch_size', 1, 3, '--runs', 2)
    assert run.wait() == 0, run.output
    return paths, run.output


def test_every_format_gives_the_embeddings(folder, plain_exports):
    paths, printed = plain_exports
    network, _ = inference.from_experiment(str(folder / 'run'))
    batch = np.stack([images.load(str(folder / f'{number}.png'), (32, 16)) for number in range(5)])
    expected = network(batch, training=False)['emb'].numpy()
    assert np.ptp(expected, axis=0).min() > 1e-2
    for path in map(str, paths):
        export = exports.load(path)
        assert tuple(export.input_shape) == (None, 32, 16, 3) and export.input_dtype == np.float32
        for part in (slice(0, 1), slice(0, 5)):
            np.testing.assert_allclose(export.embed(batch[part]), expected[part], atol=1e-5)
        lines = [line for line in printed.splitlines() if f'{path} ' in line or f'{path}:' in line]
        assert len(lines) == 3 and 'at most on 5 images' in lines[0]
        assert 'images/s' in lines[1] and 'for 3 images' in lines[2]


def test_augmentation_and_resizing_inside(folder, monkeypatch, capsys):
    paths = [folder / f'augmented{ending}' for ending in ENDINGS]
    run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', *paths, '--any_size',
               '--input_dtype', 'uint8', '--flip_augment', '--crop_augment', 'five', '--aggregator', 'normalized_mean')
    assert capsys.readouterr().out.count('at most on 16 images') == len(ENDINGS)
    network, _ = inference.from_experiment(str(folder / 'run'))
    for number, image in enumerate(pixels(folder)):
        resized = np.asarray(images.load(str(folder / f'{number}.png'), (37, 19)))
        crops = [mirror[top:top + 32, left:left + 16] for mirror in (resized, resized[:, ::-1])
                 for top, left in ((2, 1), (0, 0), (0, 3), (5, 0), (5, 3))]
        mean = network(np.stack(crops), training=False)['emb'].numpy().mean(axis=0)
        for path in map(str, paths):
            export = exports.load(path)
            assert export.input_dtype == np.uint8
            np.testing.assert_allclose(export.embed(image[None])[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_uint8_images_of_the_nets_size(folder, monkeypatch, capsys):
    path = str(folder / 'uint8.tflite')
    run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', path, '--input_dtype', 'uint8',
               '--check_dataset', folder / 'images.csv')
    assert 'at most on 5 images' in capsys.readouterr().out
    batch = np.random.default_rng(2).integers(0, 256, (3, 32, 16, 3), np.uint8)
    network, _ = inference.from_experiment(str(folder / 'run'))
    expected = network(batch.astype(np.float32), training=False)['emb']
    np.testing.assert_allclose(exports.load(path).embed(batch), expected, atol=1e-5)


def test_fused_batch_norm_and_depthwise_convolutions(folder, monkeypatch, capsys):
    monkeypatch.setattr(mobilenet_v1_1_224, 'WIDTHS', mobilenet_v1_1_224.WIDTHS[:3])
    root = write_experiment(folder / 'mobilenet', 'mobilenet_v1_1_224', 'bnneck', (64, 32), (72, 36))
    paths = [root / 'net.tflite', root / 'net.onnx']
    run_freeze(monkeypatch, '--experiment_root', root, '--frozen_model_path', *paths)
    network, _ = inference.from_experiment(str(root))
    batch = pictures(2, (64, 32), seed=100)
    expected = network(batch, training=False)['emb'].numpy()
    assert np.ptp(expected, axis=0).max() > 1e-2
    for path in map(str, paths):
        np.testing.assert_allclose(exports.load(path).embed(batch), expected, atol=1e-4 * max(1, abs(expected).max()))


@pytest.mark.parametrize('ending', ENDINGS)
def test_a_constant_from_outside_stays_inside(ending, tmp_path):
    """As the mean pixel of the ResNets."""
    mean_pixel = tf.constant([[1.0, 2.0, 3.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 3], tf.float32, name='images')])
    def embed(images):
        return {'embeddings': tf.reduce_mean(images, axis=(1, 2)) - mean_pixel}

    module = tf.Module()
    module.embed = embed
    with exports.written(str(tmp_path / f'constant{ending}'), module) as export:
        np.testing.assert_allclose(export.embed(np.ones((2, 4, 4, 3), np.float32)), [[0, -1, -2]] * 2, atol=1e-6)


@pytest.mark.parametrize('ending', ENDINGS)
def test_grouped_convolutions_and_gelu(ending, tmp_path):
    """As in ConvNeXt: the convolution is a function for XLA in Keras, and ONNX lacks an operation of GELU."""
    images = keras.Input((16, 8, 3))
    features = keras.layers.Conv2D(6, 3, groups=3, activation='gelu')(images)
    network = keras.Model(images, {'embeddings': keras.layers.GlobalAveragePooling2D()(features)})
    pixels = np.random.default_rng(0).normal(0, 2, (5, 16, 8, 3)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 16, 8, 3], name='images')], autograph=False)
    def embed(images):
        return network(images, training=False)

    module = tf.Module()
    module.weights, module.embed = [variable.value for variable in network.variables], embed
    export, path = exports.FORMATS[ending], str(tmp_path / f'exported{ending}')
    export.save(module, path)
    np.testing.assert_allclose(export.load(path).embed(pixels), embed(pixels)['embeddings'], rtol=1e-5, atol=1e-6)


def test_the_originals_command_line(folder, plain_exports, monkeypatch, capsys):
    path = folder / 'encoder.pb'
    model_flags = ['--model_name', 'mnist', '--head_name', 'fc1024_normalize', '--embedding_dim', 6,
                   '--net_input_height', 32, '--net_input_width', 16]
    run_freeze(monkeypatch, '--checkpoint_name', folder / 'run' / 'checkpoint-7', '--frozen_model_path', path,
               *model_flags)
    graph_def = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    batch = pictures(2, (32, 16), seed=100)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(graph_def, name='')
        embs = session.run('head/out_emb:0', {'input:0': batch})
    np.testing.assert_allclose(embs, exports.load(str(plain_exports[0][0])).embed(batch), atol=1e-5)
    capsys.readouterr()
    run_freeze(monkeypatch, '--frozen_model_path', path, '--load', '--batch_size', 2, '--runs', 3)
    assert 'for 2 images' in capsys.readouterr().out


def small_resnet(input_shape, last_stride=2, pooling='avg'):
    return _resnet.slim_body('resnet_v1_50', (1, 1, 1), input_shape, last_stride, pooling)


def test_a_checkpoint_by_its_name_is_the_net_that_was_trained(folder, tmp_path, monkeypatch, capsys):
    """The same embeddings as embed.py: with its args.json next to it, and by flags without one."""
    monkeypatch.setattr(_resnet, 'DEPTHS', (16, 32, 64))
    monkeypatch.setattr(resnet_v1_50, 'body', small_resnet)
    root = write_experiment(folder / 'gem', 'resnet_v1_50', 'direct', (64, 32), (72, 36), pooling='gem', last_stride=1)
    monkeypatch.setattr(sys, 'argv', ['embed.py', '--experiment_root', str(root), '--dataset',
                                      str(folder / 'images.csv'), '--quiet'])
    embed.main()
    with h5py.File(root / 'images_embeddings.h5') as file:
        expected = file['emb'][:]
    batch = np.stack([images.load(str(folder / f'{number}.png'), (64, 32)) for number in range(5)])
    for name in ('checkpoint-7.index', 'checkpoint-7.data-00000-of-00001'):
        os.link(root / name, tmp_path / name)
    alone = ['--checkpoint_name', tmp_path / 'checkpoint-7', '--model_name', 'resnet_v1_50', '--head_name', 'direct',
             '--embedding_dim', 6, '--net_input_height', 64, '--net_input_width', 32, '--last_stride', 1]
    for source, compared_with in ((['--checkpoint_name', root / 'checkpoint-7', '--check_dataset', folder / 'images.csv'],
                                   'embed.py'),
                                  ([*alone, '--pooling', 'gem'], 'the network of these flags')):
        path = tmp_path / 'new' / 'folder' / 'net.tflite'
        run_freeze(monkeypatch, *source, '--frozen_model_path', path)
        printed = capsys.readouterr().out
        assert f'it differs from {compared_with} by' in printed
        assert all((flag in printed) == ('--last_stride' in source) for flag in ('--last_stride 1', '--pooling gem'))
        np.testing.assert_allclose(exports.load(str(path)).embed(batch), expected, atol=1e-4 * abs(expected).max())
        path.unlink()
    with pytest.raises(InputError, match='checkpoint-7 holds gem/p, which .*--pooling'):
        run_freeze(monkeypatch, *alone, '--frozen_model_path', path)
    with pytest.raises(InputError, match='--pooling avg contradicts .*args.json .gem.'):
        run_freeze(monkeypatch, '--checkpoint_name', root / 'checkpoint-7', '--pooling', 'avg')
    assert left_in(path.parent) == ['net.tflite.json']  # The card of the removed export.


@pytest.mark.parametrize('flags, idle', [
    (['--describe', 'run', '--any_size'], '--any_size without effect: --describe only'),
    (['--load', '--any_size'], '--any_size without effect: --load only'),
    (['--load', '--flip_augment'], '--flip_augment without effect: --load only'),
    (['--load', '--crop_augment', 'center'], '--crop_augment without effect: --load only'),
    (['--load', '--check_dataset', 'images.csv'], '--check_dataset without effect: --load only'),
    (['--load', '--input_dtype', 'float32'], '--input_dtype without effect: --load only'),
    (['--load', '--model_name', 'mnist', '--aggregator', 'mean'], '--aggregator, --model_name without effect: --load only'),
    (['--runs', '3'], '--runs needs --benchmark or --load'),
    (['--image_root', '.'], '--image_root needs --check_dataset'),
])
def test_flags_without_effect(flags, idle, monkeypatch, capsys):
    source = [] if '--describe' in flags else ['--frozen_model_path', 'net.pb', '--experiment_root', 'run']
    with pytest.raises(SystemExit) as exit_of:
        run_freeze(monkeypatch, *source, *flags)
    assert exit_of.value.code == 2 and f'error: {idle}' in capsys.readouterr().err


@pytest.mark.parametrize('ending', ENDINGS)
def test_an_export_that_differs_is_not_kept(folder, plain_exports, ending, tmp_path, monkeypatch):
    """A folder and a file neither where there is one nor where there is none; each format differs once."""
    right = exports.FORMATS[ending]

    def save_wrong(module, path, metadata):
        bias = module.weights[-1]
        bias.assign_add(1e-2 * tf.ones_like(bias))
        right.save(module, path, metadata)
        bias.assign_sub(1e-2 * tf.ones_like(bias))

    monkeypatch.setitem(exports.FORMATS, ending, right._replace(save=save_wrong))
    before = plain_exports[0][ENDINGS.index(ending)]
    old = tmp_path / f'old{ending}'
    shutil.copytree(before, old) if before.is_dir() else shutil.copy(before, old)
    targets = {'': (old, tmp_path / 'new'), '.pb': (tmp_path / 'new.pb',)}
    for path in targets.get(ending, (old,)):
        with pytest.raises(InputError, match='differs from embed.py by up to'):
            run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', path)
    assert left_in(tmp_path) == [f'old{ending}']
    batch = np.zeros((1, 32, 16, 3), np.float32)
    np.testing.assert_array_equal(exports.load(str(old)).embed(batch), exports.load(str(before)).embed(batch))


def test_rounding_that_a_net_magnifies_is_tolerated(folder):
    """Embeddings sin(s x): a thousandth of a grey level changes them by up to s / 1000."""
    paths = [str(folder / f'{number}.png') for number in range(5)]
    view = inference_flags.View((32, 16), (32, 16))

    def check(slope, difference):
        def network(pixels, training):
            return {'emb': tf.sin(slope * pixels[:, :, 0, 0])}

        expected = np.zeros((5, 32), np.float32)
        export = types.SimpleNamespace(embed=lambda batch: batch + np.float32(difference))
        return export_check.max_difference(export, [expected], expected, 'embed.py',
                                           lambda: export_check.sensitivity(network, paths, view))

    assert check(0.01, 9e-5) == np.float32(9e-5) and check(1, 9e-4) == np.float32(9e-4)
    for slope, difference in ((0.01, 2e-4), (1, 2e-3), (1, np.nan)):
        with pytest.raises(InputError, match='more than rounding explains'):
            check(slope, difference)


def distances(folder, one, *others):
    """Return the distances that the example prints for an image of the folder and some others."""
    network, _ = inference.from_experiment(str(folder / 'run'))
    embs, = inference.embed_files(network, [str(folder / name) for name in (one, *others)])
    return [f'distance: {np.linalg.norm(embs[0, 0] - other):.4f}\n' for other in embs[0, 1:]]


def test_the_example_needs_nothing_of_this_project(folder, tmp_path, monkeypatch):
    """Nor does TensorFlow say a word of its own."""
    run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--any_size')  # To `frozen`, in the experiment root.
    shutil.copytree(folder / 'run' / 'frozen', tmp_path / 'export')
    shutil.copy(ROOT / 'examples' / 'use_embedding.py', tmp_path)
    for number in (0, 1):
        shutil.copy(folder / f'{number}.png', tmp_path)
    command = [sys.executable, '-I', 'use_embedding.py', 'export', '0.png', '1.png']
    monkeypatch.delenv('TF_CPP_MIN_LOG_LEVEL')
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stderr == '', run.stderr
    assert [run.stdout] == distances(folder, '0.png', '1.png')


def test_the_example_resizes_images(folder, plain_exports, monkeypatch, capsys):
    example = runpy.run_path(str(ROOT / 'examples' / 'use_embedding.py'))
    assert all(image.shape[:2] != (32, 16) for image in pixels(folder))
    Image.fromarray(np.zeros((5, 3), np.uint8)).save(folder / 'small_and_grey.png')
    others = ('1.png', 'small_and_grey.png')
    expected = distances(folder, '0.png', *others)
    for ending in ('', '.tflite', '.onnx'):
        for other, printed in zip(others, expected):
            arguments = ['use_embedding.py', folder / f'plain{ending}', folder / '0.png', folder / other]
            monkeypatch.setattr(sys, 'argv', list(map(str, arguments)))
            example['main']()
            assert capsys.readouterr().out == printed


def test_the_example_uses_the_metric_and_the_resizing_of_the_card(folder, tmp_path, capsys):
    example = runpy.run_path(str(ROOT / 'examples' / 'use_embedding.py'))
    assert example['read_card'](str(tmp_path / 'export')) == ('euclidean', 'tf1')
    assert 'no model card' in capsys.readouterr().err
    card = {'metric': 'cosine', 'input': {'layout': 'nhwc', 'pixels': 'rgb255', 'resize': 'bicubic'}}
    (tmp_path / 'export.json').write_text(json.dumps(card))
    assert example['read_card'](str(tmp_path / 'export') + '/') == ('cosine', 'bicubic')
    one, other = np.random.default_rng(0).standard_normal((2, 5))
    for name, distance in example['METRICS'].items():
        assert distance(one, other) == pytest.approx(scipy.spatial.distance.cdist([one], [other], name)[0, 0])
    card['input']['layout'] = 'nchw'
    (tmp_path / 'export.json').write_text(json.dumps(card))
    with pytest.raises(ValueError, match='nhwc'):
        example['read_card'](str(tmp_path / 'export'))
    # Pictures of 16 bits keep their upper 8, as for the net.
    deep = (np.arange(32 * 16, dtype=np.uint16) * 100).reshape(32, 16)
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    seen = images.load(str(tmp_path / 'deep.png'), (32, 16))
    for resizing in ('tf1', 'bilinear', 'bicubic'):
        assert np.array_equal(example['read_image'](tmp_path / 'deep.png', (None, 32, 16, 3), np.float32, resizing)[0], seen)


def test_the_example_takes_uint8(folder, monkeypatch):
    """Images of the net's size are passed on as they are, and others are rounded after the resizing."""
    example = runpy.run_path(str(ROOT / 'examples' / 'use_embedding.py'))
    resized = np.asarray(images.load(str(folder / '2.png'), (32, 16)))
    taken = example['read_image'](folder / '2.png', (None, 32, 16, 3), np.uint8)
    assert taken.shape == (1, 32, 16, 3) and taken.dtype == np.uint8
    assert abs(taken[0] - resized).max() <= 0.501
    assert np.array_equal(example['read_image'](folder / '2.png', (None, -1, None, 3), np.uint8)[0], pixels(folder)[2])


def test_the_example_is_given_something_else(folder, tmp_path):
    (tmp_path / 'torn.onnx').write_bytes(b'no' * 50)
    (tmp_path / 'tensorflow.py').write_text('raise ImportError("not installed", name="tensorflow")')
    good = folder / '0.png'
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    for arguments, part in (
            ([], 'EXPORT'), ([tmp_path, good], 'IMAGE'), ([tmp_path / 'gone', good, good], 'there is no'),
            ([tmp_path, good, 'gone.png'], 'there is no gone.png'), ([tmp_path, good, good], 'needs tensorflow'),
            ([good, good, good], 'neither a SavedModel folder nor a .tflite or .onnx'),
            ([tmp_path / 'torn.onnx', good, good], 'torn.onnx cannot be loaded')):
        assert_one_sentence(run_script('examples/use_embedding.py', *arguments, env=environment), part)
    usage = run_script('examples/use_embedding.py', '--help', env=environment)
    assert usage.returncode == 0 and '--any_size' in usage.stdout and usage.stderr == ''


def test_the_example_names_an_image_that_it_cannot_read(folder, plain_exports, tmp_path):
    (tmp_path / 'torn.png').write_bytes((folder / '0.png').read_bytes()[:200])
    for path in (tmp_path / 'torn.png', tmp_path):
        process = run_script('examples/use_embedding.py', folder / 'plain.onnx', folder / '0.png', path)
        assert_one_sentence(process, f'the image {path} cannot be read')


def test_the_export_page_embeds_from_python(folder, monkeypatch):
    """Run the snippet of docs/export.md with other paths; TensorFlow prints no message of its own."""
    page = (ROOT / 'docs' / 'export.md').read_text(encoding='utf-8')
    snippet, = re.findall(r'```python\n(from tripletreid.*?)```', page, re.DOTALL)
    for name, path in (('digits/by_hand', 'run'), ('digits/digits/0000.png', '0.png'), ('digits/digits/0001.png', '1.png')):
        assert name in snippet
        snippet = snippet.replace(name, str(folder / path))
    monkeypatch.delenv('TF_CPP_MIN_LOG_LEVEL')
    run = subprocess.run([sys.executable, '-c', snippet], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stderr == '', run.stderr
    network, _ = inference.from_experiment(str(folder / 'run'))
    embs, = inference.embed_files(network, [str(folder / '0.png'), str(folder / '1.png')])
    assert run.stdout == f'{embs[0]}\n'


def test_bad_input_is_an_error_before_tensorflow_is_imported(folder, tmp_path):
    (tmp_path / 'mine').mkdir()
    for arguments, parts in [
            ([], ['--experiment_root']),
            (['--experiment_root', tmp_path / 'none'], ['no experiment root']),
            (['--experiment_root', tmp_path], ['args.json']),
            (['--experiment_root', folder / 'run', '--model_name', 'mnist'], ['--model_name']),
            (['--experiment_root', folder / 'run', '--flip_augment'], ['--aggregator']),
            (['--experiment_root', folder / 'run', '--frozen_model_path', 'net.h5'], ['net.h5', '.onnx']),
            (['--experiment_root', folder / 'run', '--frozen_model_path', folder / '0.png' / 'net.pb'], ['is no folder']),
            (['--experiment_root', folder / 'run', '--frozen_model_path', tmp_path / 'mine'], ['no SavedModel'])]:
        assert_one_sentence(run_script('freeze.py', *arguments), *parts)
    assert left_in(tmp_path) == ['mine']


def test_more_bad_input(folder, plain_exports, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='There is no checkpoint .*checkpoint-8; found there: checkpoint-7'):
        run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--checkpoint', 'checkpoint-8')
    with pytest.raises(InputError, match='There is no .*gone.onnx'):
        run_freeze(monkeypatch, '--load', '--frozen_model_path', tmp_path / 'gone.onnx')
    for path in plain_exports[0]:
        torn = tmp_path / path.name
        shutil.copytree(path, torn) if path.is_dir() else shutil.copy(path, torn)
        file = torn / 'saved_model.pb' if path.is_dir() else torn
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(InputError, match='cannot be read as'):
            run_freeze(monkeypatch, '--load', '--frozen_model_path', torn)
    monkeypatch.setitem(sys.modules, 'tf2onnx', None)
    with pytest.raises(InputError, match='need tf2onnx, which is not installed: pip install -r requirements-export.txt'):
        run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', tmp_path / 'net.onnx')


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(module, path, metadata):
        pathlib.Path(path, 'variables').mkdir()
        raise OSError(28, 'No space left on device', path)

    monkeypatch.setitem(exports.FORMATS, '', exports.FORMATS['']._replace(save=full))
    with pytest.raises(OSError, match='No space left'):
        run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', tmp_path / 'net')
    assert left_in(tmp_path) == []


# The model card.

def card_of(path):
    return json.loads(pathlib.Path(f'{path}.json').read_text())


def test_every_export_has_a_card(folder, plain_exports):
    for path in plain_exports[0]:
        card = card_of(path)
        assert card['input'] == {'name': 'images', 'dtype': 'float32', 'layout': 'nhwc', 'channels': 'RGB',
                                 'shape': ['batch', 32, 16, 3], 'size': [32, 16], 'pixels': 'rgb255',
                                 'resized_inside': False, 'resize': 'tf1', 'jpeg': 'fast'}
        assert card['output'] == {'name': 'embeddings', 'dtype': 'float32', 'dimensions': 6}
        assert card['metric'] == 'euclidean' and card['model']['model_name'] == 'mnist'
        assert card['checkpoint']['name'] == 'checkpoint-7' and len(card['checkpoint']['sha256']) == 64
        assert card['file']['name'] == path.name
    onnx_file = exports.load(str(folder / 'plain.onnx'))
    assert json.loads(onnx_file.metadata['model_card']).items() <= card_of(folder / 'plain.onnx').items()
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / 'plain.onnx'), providers=['CPUExecutionProvider'])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [('images', ['batch', 32, 16, 3])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [('embeddings', ['batch', 6])]


def test_a_tracker_feeds_crops_in_its_own_way(folder, tmp_path, monkeypatch):
    """As boxmot's ONNX backend does: RGB / 255, normalised, channels first; names and size come from the session."""
    import onnxruntime
    path = tmp_path / 'tracker.onnx'
    run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', path, '--layout', 'nchw', '--pixels',
               'imagenet')
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    taken = session.get_inputs()[0]
    assert taken.shape == ['batch', 3, 32, 16] and taken.type == 'tensor(float)'
    frame = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)[..., ::-1]  # OpenCV's frames are BGR.
    crops = []
    for left, top in ((0, 0), (20, 10)):
        crop = Image.fromarray(np.ascontiguousarray(frame[top:top + 40, left:left + 20, ::-1])).resize((16, 32))
        crops.append(((np.float32(crop) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))
    batch = np.array(crops, np.float32)
    found = session.run([session.get_outputs()[0].name], {taken.name: batch})[0]
    network, _ = inference.from_experiment(str(folder / 'run'))
    pixels = batch.transpose(0, 2, 3, 1) * np.float32([0.229, 0.224, 0.225]) * 255 + np.float32([0.485, 0.456, 0.406]) * 255
    np.testing.assert_allclose(found, network(pixels, training=False)['emb'], atol=1e-5)
    assert card_of(path)['input']['shape'] == ['batch', 3, 32, 16] and card_of(path)['input']['pixels'] == 'imagenet'


def test_each_choice_of_pixels_is_one_scaling_in_nets_exports_and_their_check():
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 3, 4, 3)).astype(np.float32)
    for choice in typing.get_args(typing.get_args(_options.Pixels)[0]):
        mean, std = PIXEL_STATISTICS[choice]
        for scaled in (_applications.PIXELS[choice](pixels),
                       export_check.as_called(pixels, export_module.Interface(pixels=choice))):
            np.testing.assert_allclose(scaled, (pixels - mean) / std, atol=1e-5)


def embedded(monkeypatch, folder, *arguments):
    """Rows that embed.py writes, and the parameters that it records."""
    path = folder / 'rows.h5'
    monkeypatch.setattr(sys, 'argv', ['embed.py', '--dataset', str(folder / 'images.csv'), '--filename', str(path),
                                      *map(str, arguments)])
    embed.main()
    with h5py.File(path) as file:
        return file['emb'][:], json.loads(file.attrs['parameters'])


def test_rows_of_an_export_are_rows_like_any_other(folder, plain_exports, monkeypatch):
    expected, _ = embedded(monkeypatch, folder, '--experiment_root', folder / 'run', '--quiet')
    flipped, _ = embedded(monkeypatch, folder, '--experiment_root', folder / 'run', '--flip_augment', '--aggregator', 'mean')
    for path in plain_exports[0][:3]:
        source = ['--exported', path, '--image_root', folder, '--batch_size', 2]
        rows, parameters = embedded(monkeypatch, folder, *source)
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        assert parameters['checkpoint'] == path.name and parameters['resize'] == 'tf1'
    rows, _ = embedded(monkeypatch, folder, *source, '--flip_augment', '--aggregator', 'mean')
    np.testing.assert_allclose(rows, flipped, atol=1e-5)


def test_a_search_with_an_export_finds_what_its_run_finds(folder, plain_exports, monkeypatch):
    found = []
    for source in (['--experiment_root', folder / 'run'], *(['--exported', path] for path in plain_exports[0][1:3])):
        result = folder / 'found.json'
        monkeypatch.setattr(sys, 'argv', ['search.py', *map(str, [
            *source, '--gallery', folder / 'images.csv', '--image_root', folder, '--index', f'{source[1]}.sqlite',
            '--filename', result, folder / '3.png'])])
        search.main()
        [query] = json.loads(result.read_text())
        found.append(query['results'])
    for each in found:
        assert len(each) == 4 and [one['fid'] for one in each] == [one['fid'] for one in found[0]]
        np.testing.assert_allclose([one['distance'] for one in each], [one['distance'] for one in found[0]], atol=1e-4)


def write_onnx(path, input_shapes, output='features'):
    """An ONNX file of another project: the mean over height and width, channels first."""
    import onnx
    from onnx import TensorProto, helper
    inputs = [helper.make_tensor_value_info(f'input{number}', TensorProto.FLOAT, shape)
              for number, shape in enumerate(input_shapes)]
    node = helper.make_node('GlobalAveragePool', ['input0'], [output])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph([node], 'other', inputs, [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize('batch', ['batch', 2])
def test_an_export_of_another_project(batch, folder, tmp_path, monkeypatch, capsys):
    path = write_onnx(tmp_path / 'other.onnx', [[batch, 3, 32, 16]])
    rows, parameters = embedded(monkeypatch, folder, '--exported', path, '--pixels', 'unit', '--image_root', folder)
    expected = [np.float32(Image.open(folder / f'{number}.png').resize((16, 32), Image.Resampling.BILINEAR)) / 255
                for number in range(5)]
    np.testing.assert_allclose(rows, np.mean(expected, axis=(1, 2)), atol=1e-6)
    assert parameters['resize'] == 'bilinear' and parameters['jpeg'] == 'accurate'
    assert '--layout nchw --net_input_height 32 --net_input_width 16 --resize bilinear' in capsys.readouterr().out


def test_exports_that_do_not_embed(folder, plain_exports, tmp_path, monkeypatch):
    def refused(path, match, *flags):
        with pytest.raises(InputError, match=match):
            embedded(monkeypatch, folder, '--exported', path, '--image_root', folder, *flags)

    image = ['batch', 3, 32, 16]
    refused(write_onnx(tmp_path / 'two.onnx', [image, image]), r'it has 2 inputs \(input0, input1\) where one is expected')
    refused(write_onnx(tmp_path / 'rank.onnx', [['batch', 3, 32]]), 'its input has 3 dimensions where images have 4')
    refused(write_onnx(tmp_path / 'no_rank.onnx', [None]), 'its input has any number of dimensions, not 4')
    refused(write_onnx(tmp_path / 'any.onnx', [['batch', 3, 'h', 'w']]),
            'does not determine --pixels and --net_input_height and --net_input_width: give them')
    refused(tmp_path / 'any.onnx', '--layout nhwc contradicts .*nchw', '--layout', 'nhwc', '--pixels', 'unit')
    refused(write_onnx(tmp_path / 'grey.onnx', [['batch', 1, 32, 16]]), 'which are not images of three channels')
    refused(folder / 'plain.onnx', '--pixels unit contradicts .*plain.onnx: by its model card it is rgb255', '--pixels',
            'unit')
    shutil.copy(folder / 'plain.onnx', tmp_path / 'moved.onnx')
    shutil.copy(folder / 'plain.tflite.json', tmp_path / 'moved.onnx.json')
    refused(tmp_path / 'moved.onnx', 'is the card of another export than .*moved.onnx')
    (tmp_path / 'moved.onnx.json').write_text('{"file": 3}')
    refused(tmp_path / 'moved.onnx', 'is not a model card')
    refused(tmp_path / 'gone.onnx', 'There is no .*gone.onnx')


def test_an_export_like_an_evaluation(folder, tmp_path, monkeypatch, capsys):
    root, checkpoint = str(folder / 'run'), str(folder / 'run' / 'checkpoint-7')
    made = {'checkpoint_sha256': provenance.file_hash(f'{checkpoint}.index'), 'flip_augment': True, 'crop_augment': 'center',
            'aggregator': 'mean'}
    evaluation = types.SimpleNamespace(
        path='cosine.json', parameters={'metric': 'cosine', 'query_dataset': 'q.csv', 'gallery_dataset': 'g.csv'},
        numbers={'mAP': 0.5, 'CMC': [0.75]}, made_with={'query': made, 'gallery': made}, verification=None)
    monkeypatch.setattr(results, 'read_evaluation', lambda path: evaluation)
    run_freeze(monkeypatch, '--experiment_root', root, '--like', 'cosine.json', '--frozen_model_path', tmp_path / 'a.tflite')
    assert 'test-time augmentation --flip_augment --crop_augment center --aggregator mean' in capsys.readouterr().out
    card = card_of(tmp_path / 'a.tflite')
    assert card['test_time_augmentation'] == {name: made[name] for name in ('flip_augment', 'crop_augment', 'aggregator')}
    assert card['evaluation'] == {'file': 'cosine.json', 'metric': 'cosine', 'query_dataset': 'q.csv',
                                  'gallery_dataset': 'g.csv', 'mAP': 0.5, 'rank-1': 0.75}
    # Without the flag, evaluations in the experiment root that differ are named.
    (folder / 'run' / 'scores.json').write_text('{}')
    run_freeze(monkeypatch, '--experiment_root', root, '--frozen_model_path', tmp_path / 'b.tflite')
    assert 'scores.json evaluates this checkpoint with other test-time augmentation' in capsys.readouterr().err
    (folder / 'run' / 'scores.json').unlink()
    evaluation.made_with['gallery'] = {**made, 'flip_augment': False, 'aggregator': None}
    with pytest.raises(InputError, match='a gallery that were embedded with different test-time augmentation'):
        run_freeze(monkeypatch, '--experiment_root', root, '--like', 'c.json', '--frozen_model_path', tmp_path / 'c.tflite')
    evaluation.made_with['gallery'] = {**made, 'checkpoint_sha256': 'another'}
    with pytest.raises(InputError, match='evaluates another checkpoint than'):
        run_freeze(monkeypatch, '--experiment_root', root, '--like', 'c.json', '--frozen_model_path', tmp_path / 'c.tflite')


FEWER_BITS = [('dynamic', '.tflite'), ('float16', '.tflite'), ('int8', '.tflite'), ('int8', '.onnx')]


@pytest.mark.parametrize('kind, ending', FEWER_BITS)
def test_fewer_bits(kind, ending, folder, plain_exports, tmp_path, monkeypatch, capsys):
    path = tmp_path / f'small{ending}'
    calibration = ['--calibration', folder / 'images.csv'] if kind == 'int8' else []
    run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', path, '--quantize', kind,
               *calibration)
    assert 'its embeddings differ from embed.py by a cosine distance of' in capsys.readouterr().out
    float_file = folder / f'plain{ending}'
    assert path.stat().st_size < 0.6 * float_file.stat().st_size and card_of(path)['quantization'] == kind
    batch = np.stack([images.load(str(folder / f'{number}.png'), (32, 16)) for number in range(5)])
    found, expected = (exports.load(str(each)).embed(batch) for each in (path, float_file))
    assert found.dtype == np.float32 and 0 < abs(found - expected).max()


@pytest.mark.parametrize('kind, ending', FEWER_BITS)
def test_fewer_bits_err_by_half_steps(kind, ending, tmp_path):
    """A sum of products errs by at most half a step of each factor, and of the sum itself."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.1, (32 * 16 * 3, 6)).astype(np.float32)
    batch = random.uniform(0, 255, (8, 32, 16, 3)).astype(np.float32)
    module = tf.Module()
    module.weights = [tf.Variable(weights)]

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 16, 3), tf.float32, name='images')], autograph=False)
    def embed(images):
        return {'embeddings': tf.reshape(images, [-1, len(weights)]) @ module.weights[0]}

    module.embed = embed
    with exports.written(str(tmp_path / f'a{ending}'), module, quantize=quantization.Quantization(kind, [batch])) as written:
        found = written.embed(batch)
    rows = batch.reshape(8, -1)
    expected = rows @ weights
    if kind == 'float16':
        most = 2 ** -11 * np.abs(rows) @ np.abs(weights)  # Half the step of 11 bits.
    else:
        steps = [255 / 255, 2 * np.abs(weights).max() / 254, np.ptp([0, *expected.ravel()]) / 255]
        halves = [1.01 * step / 2 for step in steps]  # Ranges of calibration are rounded, too.
        sums = np.abs(weights).sum(axis=0), (rows + halves[0]).sum(axis=1, keepdims=True)
        most = halves[0] * sums[0] + halves[1] * sums[1] + halves[2]
    difference = np.abs(found - expected)
    assert (difference <= most).all() and difference.max() > 1e-4 and most.max() < np.abs(expected).max()


def test_an_export_that_costs_too_much_is_refused(folder, tmp_path, monkeypatch, capsys):
    """Compare the printed mAP with the evaluation of the network, and with one of a better network."""
    (tmp_path / 'pairs.csv').write_text(''.join(f'{number % 2},{number}.png\n' for number in range(5)))
    sides = []
    for side in ('query', 'gallery'):
        monkeypatch.setattr(sys, 'argv', ['embed.py', '--experiment_root', str(folder / 'run'), '--dataset', str(
            tmp_path / 'pairs.csv'), '--filename', str(tmp_path / 'a.h5'), '--quiet'])
        embed.main()
        sides += [f'--{side}_dataset', str(tmp_path / 'pairs.csv'), f'--{side}_embeddings', str(tmp_path / 'a.h5')]
    path = tmp_path / 'evaluation.json'
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', *sides, '--excluder', 'diagonal', '--metric', 'euclidean', '--filename',
                                      str(path)])
    evaluate.main()
    flags = '--experiment_root', folder / 'run', '--like', path, '--max_loss', '0.5', '--frozen_model_path'
    run_freeze(monkeypatch, *flags, tmp_path / 'a.tflite', tmp_path / 'a.onnx', '--layout', 'nchw', '--pixels', 'imagenet')
    mean_ap = json.loads(path.read_text())['mAP']
    assert capsys.readouterr().out.count(f'; mAP {mean_ap:.2%}, where {path} has {mean_ap:.2%}: difference +0.00%, ') == 2
    # A score that the export does not reach.
    content = json.loads(path.read_text())
    for query in content['queries']:
        query['ap'] = 1.0
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match='The export is not kept: mAP .*; --max_loss allows 0.5 points'):
        run_freeze(monkeypatch, *flags, tmp_path / 'b.tflite')
    assert not (tmp_path / 'b.tflite').exists() and mean_ap < 0.99
    (tmp_path / 'pairs.csv').write_text(''.join(f'{number % 3},{number}.png\n' for number in range(5)))
    with pytest.raises(InputError, match='evaluation.json is an evaluation of another gallery than .*pairs.csv'):
        run_freeze(monkeypatch, *flags, tmp_path / 'b.tflite')
    content['parameters']['rerank'] = True
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match='was made with --rerank, and --max_loss compares embeddings of single images'):
        run_freeze(monkeypatch, *flags, tmp_path / 'b.tflite')


def test_quantisation_that_is_refused(folder, tmp_path, monkeypatch, capsys):
    for path, flags, match in ((tmp_path / 'a.pb', ['dynamic'], '--quantize dynamic is for .tflite, .onnx files'),
                               (tmp_path / 'a.onnx', ['float16'], '--quantize float16 is for .tflite files')):
        with pytest.raises(InputError, match=match):
            run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', path, '--quantize', *flags)
    with pytest.raises(SystemExit):
        run_freeze(monkeypatch, '--experiment_root', folder / 'run', '--frozen_model_path', 'a.onnx', '--quantize', 'int8')
    assert '--quantize int8 needs --calibration' in capsys.readouterr().err
    rows = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.float32)
    with pytest.raises(InputError, match='The quantised export is not kept'):
        quantization.loss_in_words(*rows)
    assert left_in(tmp_path) == []

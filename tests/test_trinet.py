"""The paper's own TriNet against an independent implementation of Caffe's ResNet-50: the one in Keras Applications."""
import math
import os
import pathlib
import struct
import zlib

import keras
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

import trinet_embed
from conftest import assert_one_sentence, run_script
from tripletreid.errors import InputError
from tripletreid.modeling import model, pretrained

BGR_MEAN = np.array([103.0626238, 115.90288257, 123.15163084], np.float32)


def convolutions():
    """(name in Keras Applications, kernel size, channels in, channels out) in the order of Lasagne's layers."""
    yield 'conv1', 7, 3, 64
    channels = 64
    for stage, units, width in ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512)):
        for unit in range(1, units + 1):
            name = f'conv{stage}_block{unit}'
            if unit == 1:
                yield f'{name}_0', 1, channels, 4 * width
            yield f'{name}_1', 1, channels, width
            yield f'{name}_2', 3, width, width
            yield f'{name}_3', 1, width, 4 * width
            channels = 4 * width


def random_arrays():
    """The 273 arrays of a file of weights, at random, such that the activations keep their scale."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    def statistics(channels, gain=1, scale=1):
        """beta, gamma, mean, inv_std"""
        return [normal(channels) / 4, gain * np.exp(normal(channels) / 4), scale * normal(channels) / 4,
                np.exp(normal(channels) / 4) / scale]

    arrays = []
    for name, size, channels_in, channels_out in convolutions():
        arrays.append(normal(channels_out, channels_in, size, size) * math.sqrt(2 / (channels_in * size ** 2)))
        if name == 'conv1':
            arrays += [normal(channels_out), *statistics(channels_out, scale=100)]
        else:
            arrays += statistics(channels_out, gain=0.3 if name.endswith('_3') else 1)
    arrays += [normal(2048, 1024) * math.sqrt(2 / 2048), *statistics(1024)]
    return [*arrays, normal(1024, 128) / 32, normal(128)]


@pytest.fixture(scope='module')
def arrays():
    return random_arrays()


@pytest.fixture(scope='module')
def weights(arrays, tmp_path_factory):
    """Path of the file of weights."""
    path = tmp_path_factory.mktemp('trinet') / 'weights.npz'
    np.savez(path, *arrays)
    return path


@pytest.fixture(scope='module')
def reference(arrays):
    """A function by Keras Applications and NumPy: images of RGB 0..255 -> (features [B, 2048], embeddings [B, 128])."""
    def with_caffe_pooling(layer):
        if layer.name == 'pool1_pad':  # Caffe's windows start at the first pixel.
            return keras.layers.ZeroPadding2D(((0, 1), (0, 1)))
        return layer.__class__.from_config(layer.get_config())

    body = keras.applications.ResNet50(weights=None, include_top=False, pooling='avg', input_shape=(None, None, 3))
    body = keras.models.clone_model(body, clone_function=with_caffe_pooling)
    remaining = iter(arrays)
    for name, _, _, channels in convolutions():
        kernel = next(remaining).transpose(2, 3, 1, 0)
        bias = next(remaining) if name == 'conv1' else np.zeros(channels)
        body.get_layer(f'{name}_conv').set_weights([kernel, bias])
        normalization = body.get_layer(f'{name}_bn')
        beta, gamma, mean, inv_std = (next(remaining) for _ in range(4))
        normalization.set_weights([gamma, beta, mean, inv_std ** -2 - normalization.epsilon])
    dense, beta, gamma, mean, inv_std, last, bias = remaining

    def features_and_embeddings(images):
        features = body(images[..., ::-1] - BGR_MEAN, training=False).numpy()
        hidden = np.maximum((features @ dense - mean) * gamma * inv_std + beta, 0)
        return features, hidden @ last + bias
    return features_and_embeddings


def difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope='module')
def network():
    return model.build('trinet', 'fc1024', 128, (None, None, 3))


@pytest.fixture
def variables(network):
    return model.named_variables(network)


def test_same_features_as_keras_applications(network, variables, weights, reference, record_property):
    pretrained.load_trinet(str(weights), variables)
    for size in ((256, 128), (97, 61)):
        images = np.random.default_rng(1).uniform(0, 255, (2, *size, 3)).astype(np.float32)
        features, embs = reference(images)
        assert difference(*embs) > 1e-3
        endpoints = network(images, training=False)
        reached = difference(endpoints['model_output'], features)
        record_property('fidelity', (f'trinet, features at {size[0]}×{size[1]}', float(reached), 1e-5))
        assert reached < 1e-5
        assert difference(endpoints['emb'], embs) < 1e-5


def test_trinet_embed(weights, reference, tmp_path, record_property):
    random = np.random.default_rng(2)
    PIL.Image.fromarray(random.integers(0, 256, (300, 133, 3), np.uint8)).save(tmp_path / 'colour.jpg')
    PIL.Image.fromarray(random.integers(0, 256, (50, 20), np.uint8)).save(tmp_path / 'grey.png')
    (tmp_path / 'broken.jpg').write_bytes((tmp_path / 'colour.jpg').read_bytes()[:1000])
    names = ['grey.png', 'colour.jpg', 'broken.jpg']
    (tmp_path / 'files.txt').write_text('\n'.join(names) + '\n')
    process = run_script('trinet_embed.py', 'files.txt', weights, '--batch_size', '2', cwd=tmp_path)
    # The embeddings before the batch of the broken image are printed.
    assert_one_sentence(process, 'broken.jpg', status=1)
    lines = [line.split(',') for line in process.stdout.splitlines()]
    assert [line[0] for line in lines] == names[:2]
    assert {len(line) for line in lines} == {1 + 128}

    expected = []
    for name in names[:2]:
        pixels = np.asarray(PIL.Image.open(tmp_path / name).convert('RGB'))
        image = trinet_embed.resize(pixels, 288, 144).astype(np.float32)
        crops = [image[16:-16, 8:-8], image[:-32, :-16], image[:-32, 16:], image[32:, :-16], image[32:, 16:]]
        crops += [crop[:, ::-1] for crop in crops]
        expected.append(reference(np.stack(crops))[1].mean(axis=0))
    reached = difference(np.array([line[1:] for line in lines], float), np.stack(expected))
    record_property('fidelity', ('trinet_embed.py, embeddings', float(reached), 1e-5))
    assert reached < 1e-5


# Checksums of random images resized by cv2.resize (OpenCV 4.10 and 5.0, equal bits).
OPENCV = {(128, 64): 1198557756, (288, 144): 3752016720, (576, 288): 3376235241, (100, 50): 2295065507,
          (300, 77): 3360954263, (1, 1): 3611424863, (2, 3): 2410702348, (1000, 301): 2685812241}


def test_resize_is_opencvs():
    random = np.random.default_rng(0)
    for size, checksum in OPENCV.items():
        image = random.integers(0, 256, (*size, 3), np.uint8)
        assert zlib.crc32(trinet_embed.resize(image, 288, 144).tobytes()) == checksum


def test_resize_is_bilinear():
    image = np.random.default_rng(3).integers(0, 256, (31, 17, 1), np.uint8)
    resized = trinet_embed.resize(image, 20, 40)
    for y in range(20):
        for x in range(40):
            row, column = (y + 0.5) * 31 / 20 - 0.5, (x + 0.5) * 17 / 40 - 0.5
            top, left = int(np.floor(row)), int(np.floor(column))
            weighted = [(1 - abs(row - i)) * (1 - abs(column - j)) * image[min(max(i, 0), 30), min(max(j, 0), 16), 0]
                        for i in (top, top + 1) for j in (left, left + 1)]
            assert abs(resized[y, x, 0] - sum(weighted)) <= 1


def test_weights_as_initial_checkpoint(network, variables, weights, arrays):
    for variable in variables.values():
        variable.assign(tf.zeros(variable.shape))
    pretrained.load_body(network, str(weights))
    np.testing.assert_array_equal(variables['trinet/conv1/biases'], arrays[1])
    np.testing.assert_array_equal(variables['trinet/block1/unit_1/shortcut/weights'], arrays[6].transpose(2, 3, 1, 0))
    # The head stays as it is.
    assert not np.any(variables['fully_connected/weights']) and not np.any(variables['emb/weights'])


def refused(path, variables, match):
    before = variables['trinet/conv1/weights'].numpy()
    with pytest.raises(InputError, match=match):
        pretrained.load_trinet(str(path), variables)
    np.testing.assert_array_equal(variables['trinet/conv1/weights'], before)


def test_arrays_that_do_not_fit(arrays, variables, tmp_path):
    path = tmp_path / 'weights.npz'
    swapped = [*arrays[:11], *arrays[16:21], *arrays[11:16], *arrays[21:]]  # conv1 and conv2 of the first unit
    for changed, match in (
            (arrays[:-1], 'holds 272 arrays.* 273'),
            ([*arrays, arrays[-1]], 'holds 274 arrays.* 273'),
            (swapped, r'arr_11, .*trinet/block1/unit_1/conv1/weights.*\(3, 3, 64, 64\).*\(1, 1, 64, 64\)'),
            ([arrays[0].transpose(2, 3, 1, 0), *arrays[1:]], 'arr_0, .*trinet/conv1/weights'),
            ([arrays[0] * np.nan, *arrays[1:]], 'trinet/conv1/weights is not finite'),
            ([*arrays[:5], arrays[5] * 0, *arrays[6:]], 'trinet/conv1/BatchNorm/moving_variance is not finite')):
        np.savez(path, *changed)
        refused(path, variables, match)
    other_net = model.named_variables(model.build('mnist', 'direct', 16, (28, 28, 3)))
    np.savez(path, *arrays)
    with pytest.raises(InputError, match='the net trinet .* not mnist/conv1/weights and 7 more'):
        pretrained.load_trinet(str(path), other_net)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_files_that_are_no_weights(weights, variables, tmp_path):
    path = tmp_path / 'weights.npz'
    np.savez(path, np.array([Bomb(tmp_path / 'unpickled')]))
    refused(path, variables, 'no readable .npz file of plain arrays')
    np.array(Bomb(tmp_path / 'unpickled')).dump(path)
    refused(path, variables, 'can run any code when it is opened, so it is not read here')
    assert not (tmp_path / 'unpickled').exists()
    path.write_bytes(weights.read_bytes()[:100_000])
    refused(path, variables, 'no readable .npz')
    path.write_bytes(b'')
    refused(path, variables, 'no readable .npz')
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))
    refused(path, variables, 'no readable .npz')
    np.savez(path, conv1=np.zeros(3))
    refused(path, variables, 'other names than arr_0')
    refused(tmp_path / 'absent.npz', variables, 'no file')
    refused(tmp_path, variables, 'There is no file')
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)
    refused(path, variables, 'no readable .npz')


def test_lists_that_are_none(tmp_path):
    (tmp_path / 'empty.txt').write_text('\n\n')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
    for name, part in (('absent.txt', 'no list'), ('empty.txt', 'is empty'), ('binary.txt', 'not UTF-8')):
        assert_one_sentence(run_script('trinet_embed.py', tmp_path / name, 'weights.npz'), part, name, status=1)
    assert_one_sentence(run_script('trinet_embed.py', 'a', 'b', '--batch_size', '0'), '--batch_size', status=2)


def test_images_are_turned_upright(tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (60, 30, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / 'upright.png')
    turned = PIL.Image.fromarray(np.rot90(pixels, 1))
    exif = turned.getexif()
    exif[0x0112] = 6  # To be turned clockwise by a quarter for display.
    turned.save(tmp_path / 'turned.png', exif=exif)
    np.testing.assert_array_equal(trinet_embed.ten_crops(tmp_path / 'turned.png'),
                                  trinet_embed.ten_crops(tmp_path / 'upright.png'))
    # Another entry, of another type than it should have, does not matter: a resolution in letters.
    exif[0x011A] = 72.0
    rational, letters = (struct.pack('>HH', 0x011A, kind) for kind in (5, 2))
    assert rational in exif.tobytes()
    turned.save(tmp_path / 'turned.png', exif=exif.tobytes().replace(rational, letters))
    np.testing.assert_array_equal(trinet_embed.ten_crops(tmp_path / 'turned.png'),
                                  trinet_embed.ten_crops(tmp_path / 'upright.png'))
    with pytest.raises(InputError, match='absent.png cannot be read: no such file'):
        trinet_embed.ten_crops(os.path.join(tmp_path, 'absent.png'))


@pytest.mark.parametrize('orientation', range(10))
def test_every_way_to_hold_a_camera(tmp_path, orientation):
    image = PIL.Image.fromarray(np.random.default_rng(4).integers(0, 256, (60, 30, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / 'held.png', exif=exif)
    with PIL.Image.open(tmp_path / 'held.png') as held:
        PIL.ImageOps.exif_transpose(held).save(tmp_path / 'upright.png')
    np.testing.assert_array_equal(trinet_embed.ten_crops(tmp_path / 'held.png'),
                                  trinet_embed.ten_crops(tmp_path / 'upright.png'))


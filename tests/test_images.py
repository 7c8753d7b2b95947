"""Image files of all kinds: read as TensorFlow 1 or as Pillow reads them, or refused in one clear sentence."""
import csv
import io
import os
import struct
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from _runs import Run, ended_in_one_sentence, make_people, run_results, train_arguments
from tripletreid import pictures
from tripletreid.errors import InputError
from tripletreid.pictures import Pixels

PIXELS = np.kron(np.random.default_rng(1).integers(0, 255, (8, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rotated_by_exif():
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(Image.fromarray(PIXELS), 'JPEG', quality=95, exif=exif)


def decoded(content, **options):
    """Decode the bytes of an image file as the pipeline does, in a graph."""
    import tensorflow as tf

    from tripletreid.input_pipeline import images
    dataset = tf.data.Dataset.from_tensors(content).map(lambda content: images.decode(content, **options))
    return next(iter(dataset)).numpy()


RGB = Image.fromarray(PIXELS)


def gif_of_sides(canvas, frame):
    """Return a GIF of 32x64 pixels whose header has another canvas (width, height) or frame (left, top, width, height)."""
    content = bytearray(encoded(RGB.quantize(16), 'GIF'))
    content[6:10] = struct.pack('<HH', *canvas)
    start = content.index(b'\x2c', 13 + 3 * 16) + 1
    content[start:start + 8] = struct.pack('<HHHH', *frame)
    return bytes(content)


def png_of_16_bits(factor=251):
    """Return a PNG of 16 bits per channel in RGB, which Pillow does not write."""
    rows = b''.join(b'\0' + row.tobytes() for row in (PIXELS * np.uint16(factor)).astype('>u2'))
    header = struct.pack('>IIBBBBB', PIXELS.shape[1], PIXELS.shape[0], 16, 2, 0, 0, 0)
    return PNG_START + b''.join(chunk(*each) for each in ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')))


def chunk(name, content):
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


PNG_START = b'\x89PNG\r\n\x1a\n'
PNG16 = png_of_16_bits()
ACCEPTED = {
    'jpeg': encoded(RGB, 'JPEG', quality=95),
    'jpeg, progressive': encoded(RGB, 'JPEG', quality=95, progressive=True),
    'jpeg, grey': encoded(RGB.convert('L'), 'JPEG', quality=95),
    'jpeg, CMYK': encoded(RGB.convert('CMYK'), 'JPEG', quality=95),
    'jpeg, EXIF says rotated: ignored': rotated_by_exif(),
    'jpeg, 1x1': encoded(RGB.crop((0, 0, 1, 1)), 'JPEG'),
    'jpeg, over 20 kB': encoded(Image.effect_noise((300, 200), 90), 'JPEG', quality=95),
    'png': encoded(RGB, 'PNG'),
    'png, 1x1': encoded(RGB.crop((0, 0, 1, 1)), 'PNG'),
    'png, grey': encoded(RGB.convert('L'), 'PNG'),
    'png, one bit': encoded(RGB.convert('1'), 'PNG'),
    'png, palette': encoded(RGB.convert('P'), 'PNG'),
    'png, alpha': encoded(RGB.convert('RGBA'), 'PNG'),
    'png, grey and alpha': encoded(RGB.convert('LA'), 'PNG'),
    'png, 16 bits': encoded(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257), 'PNG'),
    'png, over 20 kB': encoded(Image.effect_noise((300, 200), 90), 'PNG'),
    'png, 16 bits, RGB': PNG16,
    'gif': encoded(RGB, 'GIF'),
    'gif, transparent': encoded(RGB.quantize(7), 'GIF', transparency=2),
    'gif, frame outside of its canvas': gif_of_sides((10, 5), (0, 0, 32, 64)),
    'gif, frame with an offset': gif_of_sides((50, 90), (5, 9, 32, 64)),
}


@pytest.mark.parametrize('name', ACCEPTED)
def test_accepted(name):
    """The default has the bits of `decode_jpeg`, --jpeg accurate has Pillow's bits, which `pictures.decode` returns."""
    import tensorflow as tf
    content = ACCEPTED[name]
    image = decoded(content)
    assert np.array_equal(image, tf.io.decode_jpeg(content, channels=3))
    accurate = decoded(content, jpeg='accurate')
    assert np.array_equal(accurate, pictures.decode(content))
    difference = np.abs(image.astype(int) - accurate)
    assert difference.max() <= (16 if 'jpeg' in name else 0) and difference.mean() < 2
    if 'gif, ' in name:
        return  # Pillow shows the canvas of a GIF, on white where it is transparent.
    pillow = Image.open(io.BytesIO(content))
    if name == 'png, 16 bits':
        pillow = Image.fromarray((np.asarray(pillow) // 257).astype(np.uint8))
    assert np.array_equal(accurate, pillow.convert('RGB'))


@pytest.mark.parametrize('size', [(16, 8), (99, 50), (64, 32), (7, 61)])
@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_resizing_has_the_bits_of_pillow(method, size):
    import tensorflow as tf

    from tripletreid.input_pipeline import images
    pixels = Pixels(method, 'accurate')
    for name in ('jpeg', 'png', 'png, grey'):
        image = images.load_content(ACCEPTED[name], size, pixels)
        expected = Image.open(io.BytesIO(ACCEPTED[name])).convert('RGB').resize(size[::-1], images.FILTERS[method])
        assert np.array_equal(image, expected) and image.dtype == tf.float32
        dataset = tf.data.Dataset.from_tensors(ACCEPTED[name])
        assert np.array_equal(next(iter(dataset.map(lambda each: images.load_content(each, size, pixels)))), expected)
    assert not np.array_equal(image, images.load_content(ACCEPTED[name], size)) or size == (64, 32)


def png_header(width, height):
    """Return the beginning of a PNG of one grey value; its pixels need not be there to be refused."""
    return PNG_START + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)) + chunk(b'IDAT', b'')


def jpeg_of_sides(name, width, height):
    """Return a JPEG whose header states other sides than it has."""
    content = bytearray(ACCEPTED[name])
    start = content.index(b'\xff\xc2' if 'progressive' in name else b'\xff\xc0') + 5
    content[start:start + 4] = struct.pack('>HH', height, width)
    return bytes(content)


def jpeg_of_scans(count):
    """Return a progressive JPEG whose last scan is repeated."""
    content = encoded(RGB.convert('L'), 'JPEG', progressive=True)
    scan = content[content.rindex(b'\xff\xda'):-2]
    return content[:-2] + (count - content.count(b'\xff\xda')) * scan + content[-2:]


REFUSED = {
    'no bytes': (b'', 'it is empty'),
    'text': (b'hello world', 'it is neither a JPEG, a PNG nor a GIF'),
    'bmp': (encoded(RGB, 'BMP'), 'it is neither a JPEG, a PNG nor a GIF'),
    'webp': (encoded(RGB, 'WEBP'), 'it is neither a JPEG, a PNG nor a GIF'),
    'tiff': (encoded(RGB, 'TIFF'), 'it is neither a JPEG, a PNG nor a GIF'),
    'jpeg, cut': (ACCEPTED['jpeg'][:-400], 'Invalid JPEG data'),
    'jpeg, cut in the header': (ACCEPTED['jpeg'][:30], 'Invalid JPEG data'),
    'png, cut': (ACCEPTED['png'][:-60], 'Invalid PNG data'),
    'png, cut in the header': (ACCEPTED['png'][:12], 'Invalid PNG'),
    'gif, animated': (encoded(RGB, 'GIF', save_all=True, append_images=[RGB.rotate(180)]), 'animated'),
    'png, 20000x20000': (png_header(20000, 20000), 'it has more than 178,956,970 pixels'),
    'jpeg, 20000x20000': (jpeg_of_sides('jpeg, over 20 kB', 20000, 20000), 'it has more than 178,956,970 pixels'),
    'small jpeg, 20000x20000': (jpeg_of_sides('jpeg, 1x1', 20000, 20000), 'it has more than 178,956,970 pixels'),
    'progressive jpeg, 65500x65500': (jpeg_of_sides('jpeg, progressive', 65500, 65500), 'more than 178,956,970 pixels'),
    'gif, canvas of 20000x20000': (gif_of_sides((20000, 20000), (0, 0, 20000, 20000)), 'more than 178,956,970 pixels'),
    'gif, frame of 20000x20000': (gif_of_sides((10, 10), (0, 0, 20000, 20000)), 'more than 178,956,970 pixels'),
    'jpeg, 1500 scans': (jpeg_of_scans(1500), 'it has more than 100 scans'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(name, tmp_path):
    import tensorflow as tf

    from tripletreid.input_pipeline import images
    content, reason = REFUSED[name]
    path = tmp_path / 'image.jpg'
    path.write_bytes(content)
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        decoded(content)
    assert reason in str(images.broken_image([str(path)], raised.value))
    with pytest.raises(InputError, match='image.jpg cannot be read: it is damaged' if 'Invalid' in reason else reason):
        pictures.read(path)
    assert images.why_broken([str(path)]).keys() == {str(path)}


def test_a_progressive_jpeg_of_some_scans_is_read():
    assert decoded(jpeg_of_scans(60)).shape == (64, 32, 3)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    with pytest.raises(InputError, match='pipe.jpg cannot be read: it is not a file'):
        pictures.read(tmp_path / 'pipe.jpg')


def test_turned_and_dark_pictures_are_warned_of(tmp_path):
    with_12_bits = encoded(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 16), 'PNG')
    contents = (rotated_by_exif(), ACCEPTED['png'], with_12_bits, ACCEPTED['png, 16 bits'], b'no picture',
                png_of_16_bits(factor=16), PNG16)
    for number, content in enumerate(contents):
        (tmp_path / f'{number}.jpg').write_bytes(content)
    turned, dark = pictures.doubts_of_files(range(7), lambda number: tmp_path / f'{number}.jpg')
    assert '1 of 7 images' in turned and 'turned by EXIF' in turned and '0.jpg' in turned and '--convert' in turned
    assert '2 of 7 images' in dark and 'almost black' in dark and '2.jpg' in dark
    assert pictures.doubts_of_files([1, 1], lambda number: tmp_path / f'{number}.jpg') == []
    assert decoded(with_12_bits).max() < 16


def test_the_name_does_not_matter(tmp_path):
    import tensorflow as tf

    from tripletreid.input_pipeline import images
    for name, content in (('png.jpg', ACCEPTED['png']), ('jpeg.png', ACCEPTED['jpeg'])):
        (tmp_path / name).write_bytes(content)
        assert images.load(tf.constant(str(tmp_path / name)), (16, 8)).shape == (16, 8, 3)


def test_broken_images_of_a_run(tmp_path):
    """The run stops with the image's name and with all of its steps saved; or it leaves broken images out."""
    people = make_people(tmp_path, images=3)
    good = (people / '2_1.png').read_bytes()
    undisturbed = Run('train.py', *train_arguments(people, tmp_path / 'good', checkpoint_frequency=0))
    assert undisturbed.wait() == 0, undisturbed.output

    (people / '2_1.png').write_bytes(good[:60])
    stops = Run('train.py', *train_arguments(people, tmp_path / 'stops', checkpoint_frequency=0))
    ended_in_one_sentence(stops, people / '2_1.png', 'cannot be read', '--skip_broken_images')
    (people / '2_1.png').write_bytes(good)
    goes_on = Run('train.py', '--experiment_root', tmp_path / 'stops', '--resume')
    assert goes_on.wait() == 0, goes_on.output
    assert run_results(tmp_path / 'stops', 20) == run_results(tmp_path / 'good', 20)

    (people / '2_1.png').write_bytes(b'')
    skips = Run('train.py', *train_arguments(people, tmp_path / 'skips', iterations=6), '--skip_broken_images',
                '--resize', 'bicubic', '--jpeg', 'accurate')
    assert skips.wait() == 0 and 'Skipped 2_1.png: it is empty.' in skips.output, skips.output
    listed = list(csv.reader((tmp_path / 'skips' / 'broken_images.csv').open()))
    assert listed == [['2_1.png', 'it is empty']]
    assert b'2_1.png' not in np.load(tmp_path / 'skips' / 'log_fids.npy')

    embed = ['--experiment_root', tmp_path / 'skips', '--dataset', people / 'people.csv', '--filename', 'a.h5']
    ended_in_one_sentence(Run('embed.py', *embed), people / '2_1.png', 'it is empty')
    skips = Run('embed.py', *embed, '--skip_broken_images')
    assert skips.wait() == 0, skips.output
    from tripletreid.dataset import load_dataset
    from tripletreid.embeddings.reader import Embeddings
    kept = load_dataset(tmp_path / 'skips' / 'a.csv')
    assert len(kept) == 17 and '2_1.png' not in kept.fids and str(tmp_path / 'skips' / 'a.csv') in skips.output
    with Embeddings(tmp_path / 'skips' / 'a.h5') as embeddings:
        embeddings.check_matches(kept)
        assert embeddings.parameters['resize'] == 'bicubic' and embeddings.parameters['jpeg'] == 'accurate'
        with h5py.File(tmp_path / 'skips' / 'a.h5') as file:
            check_embedding_of_pillow(tmp_path / 'skips', people / kept.fids[0], file['emb'])


def check_embedding_of_pillow(root, path, embs):
    """Check the first of some embeddings against the net on pixels that Pillow decoded and resized."""
    from tripletreid.modeling import inference
    network, _ = inference.from_experiment(str(root))
    height, width = network.input_shape[1:3]
    pixels = np.asarray(Image.open(path).convert('RGB').resize((width, height), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_allclose(network(pixels[None])['emb'][0], embs[0], rtol=1e-5, atol=1e-6)

"""Images as they come: every oddity is read as TensorFlow 1 read it, or named in one clear sentence."""
import csv
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from _runs import Run, ended_in_one_sentence, left_behind, make_people, train_arguments

PIXELS = np.kron(np.random.default_rng(1).integers(0, 255, (8, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rotated_by_exif():
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(Image.fromarray(PIXELS), 'JPEG', quality=95, exif=exif)


def decoded(content):
    """What the pipeline makes of an image file's bytes, run as in the pipeline: in a graph."""
    import tensorflow as tf

    from tripletreid.input_pipeline import images
    dataset = tf.data.Dataset.from_tensors(content).map(images.decode)
    return next(iter(dataset)).numpy()


RGB = Image.fromarray(PIXELS)
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
    'gif': encoded(RGB, 'GIF'),
}


@pytest.mark.parametrize('name', ACCEPTED)
def test_accepted(name):
    """Bit for bit what `decode_jpeg` gives, and what Pillow gives, whose cosine transform is the slower, exacter one."""
    import tensorflow as tf
    content = ACCEPTED[name]
    image = decoded(content)
    assert np.array_equal(image, tf.io.decode_jpeg(content, channels=3))
    if 'CMYK' in name:
        return  # Pillow converts with other formulas.
    pillow = Image.open(io.BytesIO(content))
    if '16' in name:
        pillow = Image.fromarray((np.asarray(pillow) // 257).astype(np.uint8))
    difference = np.abs(image.astype(int) - np.asarray(pillow.convert('RGB')))
    assert difference.max() <= (16 if 'jpeg' in name else 0) and difference.mean() < 2


def png_header(width, height):
    """The beginning of a PNG of one grey value; its pixels need not be there to be refused."""
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    body = b'IDAT' + zlib.compress(bytes(30_000_000))
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(chunk) - 4) + chunk
                                           + struct.pack('>I', zlib.crc32(chunk)) for chunk in (header, body))


def jpeg_of_sides(width, height):
    """A JPEG whose header states other sides than it has."""
    content = bytearray(ACCEPTED['jpeg, over 20 kB'])
    start = content.index(b'\xff\xc0') + 5
    content[start:start + 4] = struct.pack('>HH', height, width)
    return bytes(content)


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
    'jpeg, 20000x20000': (jpeg_of_sides(20000, 20000), 'it has more than 178,956,970 pixels'),
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


def test_largest_image_is_within_the_bound():
    """The look at the header is spared for small files: the smallest PNG of that many pixels is none of them."""
    from tripletreid.input_pipeline import images
    assert len(zlib.compress(bytes(images.MAX_PIXELS // 8), 9)) > images.MIN_BYTES_OF_MAX_PIXELS


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
    assert left_behind(tmp_path / 'stops', 20) == left_behind(tmp_path / 'good', 20)

    (people / '2_1.png').write_bytes(b'')
    skips = Run('train.py', *train_arguments(people, tmp_path / 'skips', iterations=6), '--skip_broken_images')
    assert skips.wait() == 0 and 'Left out 2_1.png: it is empty.' in skips.output, skips.output
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

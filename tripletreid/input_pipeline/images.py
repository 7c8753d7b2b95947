"""From a file to pixels, with the numerics of TensorFlow 1."""
import csv
import multiprocessing.pool
import os
import re

import numpy as np
import tensorflow as tf
import tqdm

from tripletreid.errors import InputError, is_out_of_memory
from tripletreid.files import written_whole
from tripletreid.image_root import image_path, image_root_of_sets

MAX_PIXELS = 178_956_970  # Where Pillow, too, takes an image for an attack; about 13,000 x 13,000.
# Not even a PNG of one bit a pixel is compressed further. Most files are smaller and spared the look at their header.
MIN_BYTES_OF_MAX_PIXELS = 20_000


def paths(dataset, image_root):
    """Paths of all images of a dataset, list of str [N]; `image_root` as `image_root_of_sets` takes it."""
    image_root = image_root_of_sets(dataset, image_root)
    return [image_path(image_root, fid) for fid in dataset.fids]


def load(path, size):
    """Read, decode and resize one image file, inside or outside of tf.data.

    Args:
        path: scalar string.
        size: (height, width).

    Returns: [height, width, 3] float32, RGB in 0..255.
    """
    return resize(decode(tf.io.read_file(path)), size)


def load_content(content, size):
    """As `load`, of the bytes of an image file, eagerly.

    Raises:
        InputError: why they cannot be decoded, in words without a full stop.
    """
    try:
        return resize(decode(content), size)
    except tf.errors.OpError as error:
        if is_out_of_memory(error):
            raise
        raise InputError(_reason(error)) from error


def decode(content):
    """Decode an image file's bytes to uint8 [H, W, 3].

    `decode_jpeg` looks at the bytes and reads PNG and GIF of one frame as well, whatever the file's name says. The newer
    formats that it has come to read, as arrays of other shapes, are refused as ever. An image of more than MAX_PIXELS is
    an InvalidArgumentError before memory is taken for it, and so is all else that cannot be decoded.
    """
    is_small = tf.strings.length(content) < MIN_BYTES_OF_MAX_PIXELS
    is_known = tf.reduce_any(tf.strings.substr(content, 0, 3) == tf.constant([b'\xff\xd8\xff', b'\x89PN', b'GIF']))
    content = tf.cond(is_small & is_known, lambda: content, lambda: _checked(content))
    return tf.ensure_shape(tf.io.decode_jpeg(content, channels=3), [None, None, 3])


def _checked(content):
    complaint = _complaint(content)
    with tf.control_dependencies([tf.debugging.Assert(complaint == '', [complaint])]):
        return tf.identity(content)


def _complaint(content):
    """What is wrong with the header of an image file, scalar string; empty where that looks well."""
    head = tf.strings.substr(content, 0, 24) + 24 * b'\0'

    def starts_with(magic):
        return tf.strings.substr(head, 0, len(magic)) == magic

    def of_sides(sides):
        pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
        return tf.where(pixels > MAX_PIXELS, f'it has more than {MAX_PIXELS:,} pixels', '')

    def of_numbers(start, dtype, little_endian):
        return of_sides(tf.io.decode_raw(tf.strings.substr(head, start, 2 * dtype.size), dtype, little_endian))

    return tf.case([(starts_with(b'\xff\xd8\xff'), lambda: of_sides(tf.io.extract_jpeg_shape(content)[:2])),
                    (starts_with(b'\x89PNG'), lambda: of_numbers(16, tf.int32, little_endian=False)),
                    (starts_with(b'GIF8'), lambda: of_numbers(6, tf.uint16, little_endian=True)),
                    (tf.strings.length(content) == 0, lambda: tf.constant('it is empty'))],
                   default=lambda: tf.constant('it is neither a JPEG, a PNG nor a GIF'))


def resize(image, size):
    """Bilinear resize as TensorFlow 1 sampled: without half-pixel centres, which `tf.image.resize` now has.

    Args:
        image: [H, W, 3] uint8.
        size: (height, width).

    Returns: [height, width, 3] float32 in 0..255.
    """
    return tf.ensure_shape(resize_batch(image[None], size)[0], [*size, 3])


def resize_batch(batch, size):
    """As `resize`, for images of one size: [B, H, W, 3] uint8 or float32 -> [B, height, width, 3] float32."""
    return tf.raw_ops.ResizeBilinear(images=batch, size=size, align_corners=False, half_pixel_centers=False)


def broken_image(image_paths, error):
    """The error to raise when the pipeline failed on a batch: it names the image that cannot be read or decoded.

    Where that was for lack of memory it is the pipeline's own.

    Args:
        image_paths: the files of the batch.
        error: what the pipeline raised, for the case that all of them read well now.
    """
    if is_out_of_memory(error):
        return error
    for path in image_paths:
        reason = _why_unreadable(path)
        if reason:
            return InputError(f'The image {path} cannot be read: {reason}. Repair it, or add --skip_broken_images to a '
                              f'new run.')
    return InputError(f'Images could not be loaded: {_reason(error)}.')


def without_broken(dataset, image_root, list_path, resume, warn):
    """Leave out the images that cannot be read, after a look at every one of them, on all cores.

    Args:
        dataset: the `Dataset`.
        image_root: folder of its images, or a list with that of each of its sets.
        list_path: csv file that the broken ones are written to, with the reason.
        resume: leave out what that file lists, where there is one, and look at nothing: the run goes on as it began.
        warn: called with a sentence for each broken image.

    Returns: the `Dataset` of the others.

    Raises:
        InputError: there are no others.
    """
    if not (resume and os.path.isfile(list_path)):
        reasons = why_broken(paths(dataset, image_root))
        with written_whole(list_path) as temporary:
            with open(temporary, 'w', encoding='utf-8', newline='') as file:
                csv.writer(file).writerows((fid, reasons[path]) for fid, path in
                                           zip(dataset.fids, paths(dataset, image_root)) if path in reasons)
    with open(list_path, encoding='utf-8', newline='') as file:
        broken = dict(csv.reader(file))
    for fid, reason in broken.items():
        warn(f'Left out {fid}: {reason}.')
    readable = np.array([fid not in broken for fid in dataset.fids])
    if not readable.any():
        raise InputError(f'Not one image of {dataset.path} can be read.')
    return dataset.take(readable)


def why_broken(image_paths):
    """Of some image files, those that cannot be read or decoded: {path: reason}. All cores look at them."""
    with multiprocessing.pool.ThreadPool() as pool:
        reasons = pool.imap(_why_unreadable, image_paths, chunksize=16)
        reasons = list(tqdm.tqdm(reasons, 'Looking at images', len(image_paths), delay=2, leave=False))
    return {path: reason for path, reason in zip(image_paths, reasons) if reason}


def _why_unreadable(path):
    """Why an image file cannot be read or decoded, or None when it can."""
    try:
        decode(_checked(tf.io.read_file(path)))
    except tf.errors.OpError as error:
        return _reason(error)
    return None


def _reason(error):
    # A complaint of ours, as an assertion in a graph or outside of one words it.
    asserted = re.search(r"(?:assertion failed: \[|Summarized data: b')(.*?)['\]]", error.message)
    if asserted:
        return asserted[1]
    # TensorFlow puts names of its graph's nodes before the reason, in double braces, and of its operation behind.
    return re.sub(r'\{\{.*?\}\}| ?\[Op:\w+\].*', '', error.message.splitlines()[0]).strip().rstrip('.')

"""Read, decode and resize image files in TensorFlow, as the stored flags `--resize` and `--jpeg` of a run say."""
import csv
import functools
import multiprocessing.pool
import os
import re

import numpy as np
import tensorflow as tf
import tqdm
from PIL import Image

from tripletreid import pictures
from tripletreid.errors import InputError, is_out_of_memory
from tripletreid.files import written_whole
from tripletreid.image_root import image_path, image_root_of_sets
from tripletreid.pictures import Pixels

FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def paths(dataset, image_root):
    """Return the paths of all images of a dataset, list of str [N]; `image_root` as `image_root_of_sets` takes it."""
    image_root = image_root_of_sets(dataset, image_root)
    return [image_path(image_root, fid) for fid in dataset.fids]


def load(path, size, pixels=Pixels()):
    """Read, decode and resize one image file, inside or outside of tf.data.

    Args:
        path: scalar string.
        size: (height, width).
        pixels: `Pixels` of the run.

    Returns: [height, width, 3] float32, RGB in 0..255.
    """
    return resize(decode(tf.io.read_file(path), pixels.jpeg), size, pixels.resize)


def load_content(content, size, pixels=Pixels()):
    """Decode and resize the bytes of an image file as `load` does, eagerly.

    Raises:
        InputError: why they cannot be decoded, without a subject and a full stop.
    """
    try:
        return resize(decode(content, pixels.jpeg), size, pixels.resize)
    except tf.errors.OpError as error:
        if is_out_of_memory(error):
            raise
        raise InputError(_reason(error)) from error


def decode(content, jpeg='fast'):
    """Decode the bytes of a JPEG, PNG or GIF file to uint8 [H, W, 3], whatever the name of the file.

    Args:
        content: scalar string.
        jpeg: 'fast' (TensorFlow's default) or 'accurate' (the bits of Pillow).

    Raises:
        InvalidArgumentError: the file cannot be decoded, or `pictures.complaint` has a reason not to try.
    """
    content = tf.convert_to_tensor(content)
    complaint = _complaint(content)
    with tf.control_dependencies([tf.debugging.Assert(complaint == '', [complaint])]):
        content = tf.identity(content)
    dct_method = 'INTEGER_ACCURATE' if jpeg == 'accurate' else ''
    return tf.ensure_shape(tf.io.decode_jpeg(content, channels=3, dct_method=dct_method), [None, None, 3])


def _complaint(content):
    """Return the `pictures.complaint` about a file, a scalar string.

    A Python function in tf.data takes half the time of decoding a small JPEG (0.6 ms of CPU), so JPEG and PNG headers
    are read by TensorFlow's operations.
    """
    def starts_with(magic):
        return tf.strings.substr(content, 0, len(magic)) == magic

    def sides(height_and_width, scans=0):
        size = tf.reduce_prod(tf.cast(height_and_width, tf.int64))
        return tf.where(size > pictures.MAX_PIXELS, pictures.too_large(),
                        tf.where(scans > pictures.MAX_SCANS, pictures.too_many_scans(), ''))

    def check_jpeg():
        # Each scan begins with this marker; to split is much faster than to compare all bytes.
        parts = tf.raw_ops.StringSplitV2(input=content[None], sep=b'\xff\xda', maxsplit=pictures.MAX_SCANS + 1)
        return sides(tf.io.extract_jpeg_shape(content)[:2], tf.size(parts.values) - 1)

    def check_png():
        return sides(tf.io.decode_raw(tf.strings.substr(content + 24 * b'\0', 16, 8), tf.int32, little_endian=False))

    def check_other():
        return tf.ensure_shape(tf.numpy_function(_complaint_of_bytes, [content], tf.string, stateful=False), [])

    return tf.case([(starts_with(pictures.JPEG), check_jpeg), (starts_with(pictures.PNG), check_png)], default=check_other)


def _complaint_of_bytes(content):
    return pictures.complaint(content if isinstance(content, bytes) else content.item())  # Eager calls pass an array.


def resize(image, size, method='tf1'):
    """Resize one image.

    Args:
        image: [H, W, 3] uint8.
        size: (height, width).
        method: 'tf1' for the bilinear sampling of TensorFlow 1, without half-pixel centres; 'bilinear' or 'bicubic' for
            the bits of Pillow, whole numbers.

    Returns: [height, width, 3] float32 in 0..255.
    """
    if method == 'tf1':
        return tf.ensure_shape(resize_batch(image[None], size)[0], [*size, 3])
    # TensorFlow's antialiased resize is up to one grey level off, since Pillow rounds after each of two passes.
    resize_as_pillow = functools.partial(_resize_as_pillow, size=size, resample=FILTERS[method])
    resized = tf.numpy_function(resize_as_pillow, [image], tf.uint8, stateful=False)
    return tf.cast(tf.ensure_shape(resized, [*size, 3]), tf.float32)


def _resize_as_pillow(image, size, resample):
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resample))


def resize_batch(batch, size):
    """Resize images of one size as 'tf1' does: [B, H, W, 3] uint8 or float32 -> [B, height, width, 3] float32."""
    return tf.raw_ops.ResizeBilinear(images=batch, size=size, align_corners=False, half_pixel_centers=False)


def broken_image(image_paths, error):
    """Return the error to raise when the pipeline failed on a batch: it names the unreadable image.

    An error for lack of memory is returned unchanged.

    Args:
        image_paths: the files of the batch.
        error: the error of the pipeline, used if all files read well now.
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
    """Remove unreadable images from a dataset, after decoding every image on all cores.

    Args:
        dataset: the `Dataset`.
        image_root: folder of its images, or a list with one for each of its sets.
        list_path: csv file to write the unreadable images to, with reasons.
        resume: if that file exists, remove the images that it lists and decode nothing, so that a run continues as it
            began.
        warn: called with a sentence per unreadable image.

    Returns: the `Dataset` of the other images.

    Raises:
        InputError: no image can be read.
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
        warn(f'Skipped {fid}: {reason}.')
    readable = np.array([fid not in broken for fid in dataset.fids])
    if not readable.any():
        raise InputError(f'No image of {dataset.path} can be read.')
    return dataset.take(readable)


def why_broken(image_paths):
    """Decode image files on all cores and return the unreadable ones, {path: reason}."""
    with multiprocessing.pool.ThreadPool() as pool:
        reasons = pool.imap(_why_unreadable, image_paths, chunksize=16)
        reasons = list(tqdm.tqdm(reasons, 'Checking images', len(image_paths), delay=2, leave=False))
    return {path: reason for path, reason in zip(image_paths, reasons) if reason}


def _why_unreadable(path):
    """Return why an image file cannot be read or decoded, or None."""
    try:
        decode(tf.io.read_file(path))
    except tf.errors.OpError as error:
        return _reason(error)
    return None


def _reason(error):
    # TensorFlow quotes a complaint of `pictures` in its message about the assertion, in a graph or outside.
    asserted = re.search(r"(?:assertion failed: \[|Summarized data: b')(.*?)['\]]", error.message)
    if asserted:
        return asserted[1]
    # Names of nodes stand in double braces before the reason, the name of the operation after it.
    return re.sub(r'\{\{.*?\}\}| ?\[Op:\w+\].*', '', error.message.splitlines()[0]).strip().rstrip('.')

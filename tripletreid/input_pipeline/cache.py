"""The pixels of a small dataset, decoded once and kept in memory; in a folder as well, if later runs are to use them.

What is kept is what the decoder gives, uint8 of each image's own size. So it depends on no option, and training sees
the very numbers that it would have seen without.
"""
import hashlib
import os
import zipfile

import numpy as np
import tensorflow as tf
import tqdm

from tripletreid.errors import InputError
from tripletreid.files import left_unfinished, written_whole
from tripletreid.input_pipeline import images

PIXELS_FILE = 'pixels.bin'
INDEX_FILE = 'index.npz'


def reader(paths, kind, loading_threads, jpeg='fast'):
    """How the input pipeline gets at an image.

    Args:
        paths: image files, list of str [N].
        kind: 'none' (read and decode the file each time), 'memory', or a folder, which is filled if it is empty or was
            not filled to the end.
        loading_threads: how many images are decoded at a time while the cache is filled.

    Returns: function of a scalar int64 tensor, the number of an image, that gives uint8 [H, W, 3] in tf.data.

    Raises:
        InputError: a folder that holds the pixels of other files, or is damaged; an image that does not decode.
    """
    if kind == 'none':
        all_paths = tf.constant(paths)
        return lambda row: images.decode(tf.io.read_file(all_paths[row]), jpeg)
    if kind == 'memory':
        decoded = list(_decoded(paths, loading_threads, jpeg))
        shapes = np.array([image.shape for image in decoded])
        pixels = np.concatenate([image.ravel() for image in decoded])
    else:
        shapes, pixels = _in_folder(kind, paths, loading_threads, jpeg)
    sizes = shapes.prod(axis=1)
    with tf.device('CPU:0'):
        pixels, shapes, sizes, starts = map(tf.constant, (pixels, shapes, sizes, np.cumsum(sizes) - sizes))
    return lambda row: tf.ensure_shape(tf.reshape(tf.slice(pixels, [starts[row]], [sizes[row]]), shapes[row]),
                                       [None, None, 3])


def _decoded(paths, loading_threads, jpeg):
    """Yields the decoded images in order, uint8 [H, W, 3]."""
    decode = tf.autograph.experimental.do_not_convert(lambda path: images.decode(tf.io.read_file(path), jpeg))
    decoded = tf.data.Dataset.from_tensor_slices(paths).map(decode, num_parallel_calls=loading_threads)
    try:
        yield from tqdm.tqdm(decoded.as_numpy_iterator(), 'Decoding', len(paths), delay=2, leave=False)
    except tf.errors.OpError as error:
        raise images.broken_image(paths, error) from error


def _in_folder(folder, paths, loading_threads, jpeg):
    """Shapes int64 [N, 3] and all pixels, uint8 one after the other, of a folder that is filled if it is empty."""
    pixels_path, index_path = os.path.join(folder, PIXELS_FILE), os.path.join(folder, INDEX_FILE)
    fingerprint = _fingerprint(paths, jpeg)
    os.makedirs(folder, exist_ok=True)
    # What a run leaves that was killed while it filled the folder: the pixels, or half of a file; the index comes last.
    held = set(os.listdir(folder))
    if held <= {PIXELS_FILE, *left_unfinished(folder, PIXELS_FILE), *left_unfinished(folder, INDEX_FILE)}:
        for name in held:
            os.remove(os.path.join(folder, name))
        shapes = []
        with written_whole(pixels_path) as temporary, open(temporary, 'wb') as file:
            for image in _decoded(paths, loading_threads, jpeg):
                shapes.append(image.shape)
                file.write(image.tobytes())
        with written_whole(index_path) as temporary, open(temporary, 'wb') as file:
            np.savez(file, shapes=np.array(shapes), fingerprint=fingerprint)
    try:
        with np.load(index_path) as index:
            shapes, held = index['shapes'], str(index['fingerprint'])
        pixels = np.fromfile(pixels_path, np.uint8)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'The folder {folder} is no whole cache of images. Empty it, or name another one as '
                         f'--cache.') from error
    if held != fingerprint or len(pixels) != shapes.prod(axis=1).sum():
        raise InputError(f'The cache {folder} is that of other images, or they were changed since. Empty it, or name '
                         f'another one as --cache.')
    return shapes, pixels


def _fingerprint(paths, jpeg):
    """A hash of the images' paths, sizes and times of change."""
    digest = hashlib.sha256(b'' if jpeg == 'fast' else jpeg.encode())  # Folders of earlier versions stay valid.
    for path in paths:
        status = os.stat(path)
        digest.update(f'{path}\0{status.st_size}\0{status.st_mtime_ns}\0'.encode())
    return digest.hexdigest()

"""Keep the pixels of a small dataset in memory, or in a folder that later runs map into memory.

An image is stored as decoded, uint8 of its own size, or as resized for the run, whichever takes fewer bytes. Training gets
the same bits as without a cache.
"""
import contextlib
import hashlib
import multiprocessing.pool
import os
import pathlib
import resource
import zipfile

import numpy as np
import tensorflow as tf
import tqdm

from tripletreid import pictures
from tripletreid.errors import InputError
from tripletreid.files import left_unfinished, lock, written_whole
from tripletreid.image_root import time_of_change
from tripletreid.input_pipeline import images
from tripletreid.pictures import Pixels

PIXELS_FILE = 'pixels.bin'
INDEX_FILE = 'index.npz'
ALIGNMENT = 64  # Bytes; TensorFlow uses aligned memory without copying it.


def reader(paths, kind, loading_threads, size, pixels=Pixels()):
    """Return how the input pipeline gets an image.

    Args:
        paths: image files, list of str [N].
        kind: 'none' (read and decode the file each time), 'memory', or a folder, which is filled if it is empty or was
            not filled completely.
        loading_threads: number of images that are decoded in parallel while the cache is filled.
        size: (height, width) of the images.
        pixels: `Pixels` of the run.

    Returns: function of a scalar int64 tensor, the number of an image, that returns float32 [height, width, 3].

    Raises:
        InputError: a folder with the pixels of other files, or a damaged one; an image that cannot be decoded; or too
            little memory.
    """
    if kind == 'none':
        all_paths = tf.constant(paths)
        return lambda row: images.load(all_paths[row], size, pixels)
    if kind == 'memory':
        shapes, is_resized, data = _in_memory(paths, loading_threads, size, pixels)
    else:
        shapes, is_resized, data = _in_folder(kind, paths, loading_threads, size, pixels)
    lengths = np.where(is_resized, _resized_bytes(size, pixels), shapes.prod(axis=1))
    with tf.device('CPU:0'):
        data = tf.experimental.dlpack.from_dlpack(data.__dlpack__())  # `tf.constant` would copy the pixels.
        shapes, is_resized, lengths, starts = map(tf.constant, (shapes, is_resized, lengths, np.cumsum(lengths) - lengths))

    def read(row):
        content = tf.slice(data, [starts[row]], [lengths[row]])
        return tf.ensure_shape(tf.cond(
            is_resized[row], lambda: _from_bytes(content, size, pixels),
            lambda: images.resize(tf.ensure_shape(tf.reshape(content, shapes[row]), [None, None, 3]), size, pixels.resize)),
            [*size, 3])

    return read


def _resized_bytes(size, pixels):
    """Return the number of bytes of a resized image: float32, or uint8 where it has whole numbers."""
    return size[0] * size[1] * 3 * (4 if pixels.resize == 'tf1' else 1)


def _to_bytes(image, pixels):
    """Return a resized image as bytes, a uint8 vector."""
    return tf.reshape(tf.bitcast(image, tf.uint8) if pixels.resize == 'tf1' else tf.cast(image, tf.uint8), [-1])


def _from_bytes(content, size, pixels):
    """Return a resized image from its bytes."""
    if pixels.resize == 'tf1':
        return tf.reshape(tf.bitcast(tf.reshape(content, [-1, 4]), tf.float32), [*size, 3])
    return tf.cast(tf.reshape(content, [*size, 3]), tf.float32)


def _decoded(paths, loading_threads, size, pixels, title):
    """Yield (shape int32 [3], is_resized, bytes as a uint8 vector) of each image as it is stored, in order."""
    @tf.autograph.experimental.do_not_convert
    def stored(path):
        image = images.decode(tf.io.read_file(path), pixels.jpeg)
        is_resized = tf.size(image, tf.int64) > _resized_bytes(size, pixels)
        content = tf.cond(is_resized, lambda: _to_bytes(images.resize(image, size, pixels.resize), pixels),
                          lambda: tf.reshape(image, [-1]))
        return tf.shape(image), is_resized, content

    dataset = tf.data.Dataset.from_tensor_slices(paths).map(stored, num_parallel_calls=loading_threads)
    try:
        yield from tqdm.tqdm(dataset.as_numpy_iterator(), title, len(paths), delay=2, leave=False)
    except tf.errors.OpError as error:
        raise images.broken_image(paths, error) from error


def _in_memory(paths, loading_threads, size, pixels):
    """Return (shapes int64 [N, 3], is_resized [N], all pixels as a uint8 vector), which are never copied."""
    with multiprocessing.pool.ThreadPool(loading_threads) as pool:
        decoded_bytes = np.array([3 * height * width for height, width in pool.imap(pictures.sides, paths, chunksize=64)])
    total = int(np.minimum(decoded_bytes, _resized_bytes(size, pixels)).sum())
    gigabytes = f'{total / 1e9:,.1f} GB'
    available = _available_memory()
    if total > available:
        raise InputError(f'--cache memory needs {gigabytes} for the pixels of {len(paths):,} images, and '
                         f'{available / 1e9:,.1f} GB of memory are available: use --cache none, or a folder on a disk.')
    try:
        data = np.empty(total + ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise InputError(f'There are no {gigabytes} of memory for --cache memory: use --cache none.') from error
    data = data[-data.ctypes.data % ALIGNMENT:][:total]
    shapes, is_resized, place = [], [], 0
    for shape, resized, content in _decoded(paths, loading_threads, size, pixels, f'Caching {gigabytes}'):
        if place + len(content) > total:
            raise InputError('An image has changed while --cache memory was filled. Start again.')
        data[place:place + len(content)] = content
        place += len(content)
        shapes.append(shape)
        is_resized.append(resized)
    return np.array(shapes, np.int64), np.array(is_resized), data[:place]


def _available_memory():
    """Return how many bytes this process may still take: of the machine, of its container, of its own limit."""
    limits = [float('inf')]
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split(':') for line in pathlib.Path('/proc/meminfo').read_text('ascii').splitlines())
        limits.append(1024 * int(fields.get('MemAvailable', fields['MemFree']).split()[0]))
    with contextlib.suppress(OSError, ValueError):
        limit, used, stat = (pathlib.Path(f'/sys/fs/cgroup/memory.{name}').read_text('ascii')
                             for name in ('max', 'current', 'stat'))
        reclaimable = dict(line.split() for line in stat.splitlines()).get('inactive_file', 0)
        limits.append(int(limit) - int(used) + int(reclaimable))
    with contextlib.suppress(OSError, ValueError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(pathlib.Path('/proc/self/statm').read_text('ascii').split()[0]) * resource.getpagesize()
        limits += [] if limit == resource.RLIM_INFINITY else [limit - used]
    return min(limits)


def _in_folder(folder, paths, loading_threads, size, pixels):
    """Return the content of a folder as `_in_memory` does, mapped from its file; fill the folder if it is empty."""
    pixels_path, index_path = os.path.join(folder, PIXELS_FILE), os.path.join(folder, INDEX_FILE)
    os.makedirs(folder, exist_ok=True)
    with _locked(folder) as is_locked:  # Several runs may start at once: the first one fills the folder.
        held = set(os.listdir(folder))
        unfinished = {*left_unfinished(folder, PIXELS_FILE), *left_unfinished(folder, INDEX_FILE)}
        if held <= {PIXELS_FILE, *unfinished}:  # The index is written last, so a killed run filled this folder, or none.
            if is_locked:
                for name in held:
                    os.remove(os.path.join(folder, name))
            _fill(pixels_path, index_path, paths, loading_threads, size, pixels)
    try:
        with np.load(index_path) as index:
            shapes, held = index['shapes'], str(index['fingerprint'])
            is_resized = index['is_resized'] if 'is_resized' in index else np.zeros(len(shapes), bool)
        # Private to this process and never written, so it shares the pages of the file.
        data = np.memmap(pixels_path, np.uint8, 'c') if len(shapes) else np.empty(0, np.uint8)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'The folder {folder} is not a complete cache of images. Empty it, or name another one as '
                         f'--cache.') from error
    lengths = np.where(is_resized, _resized_bytes(size, pixels), shapes.prod(axis=1))
    if held != _fingerprint(paths, is_resized.any(), size, pixels) or len(data) != lengths.sum():
        raise InputError(f'The cache {folder} holds other images, or images of another size, or the images have changed '
                         f'since. Empty it, or name another one as --cache.')
    return shapes, is_resized, data


@contextlib.contextmanager
def _locked(folder):
    """Lock a folder until the end of this block, after waiting for other processes; yield False without locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock(descriptor, wait=True, without_locks=False)
    finally:
        os.close(descriptor)


def _fill(pixels_path, index_path, paths, loading_threads, size, pixels):
    shapes, is_resized = [], []
    with written_whole(pixels_path) as temporary, open(temporary, 'wb') as file:
        for shape, resized, content in _decoded(paths, loading_threads, size, pixels, 'Caching'):
            shapes.append(shape)
            is_resized.append(resized)
            file.write(content)
    with written_whole(index_path) as temporary, open(temporary, 'wb') as file:
        np.savez(file, shapes=np.array(shapes, np.int64), is_resized=np.array(is_resized),
                 fingerprint=_fingerprint(paths, any(is_resized), size, pixels))


def _fingerprint(paths, any_resized, size, pixels):
    """Return a hash of the images' paths, sizes and times of change, and of all that their stored pixels depend on.

    The hash of decoded images does not depend on the size, and for --jpeg fast it is the one of earlier versions.
    """
    digest = hashlib.sha256(b'' if pixels.jpeg == 'fast' else pixels.jpeg.encode())
    if any_resized:
        digest.update(f'{size[0]}x{size[1]} {pixels.resize}'.encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f'{path}\0{status.st_size}\0{time_of_change(status)}\0'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()

"""Look at image files before they are trained with: whether they can be used, their sizes, their contents."""
import hashlib
import multiprocessing.pool
import os
import typing

from tripletreid import pictures, quiet
from tripletreid.copies import prints

FILES_AT_ONCE = 16


class Look(typing.NamedTuple):
    """The properties of an image file."""
    problem: str | None  # Why it cannot be used.
    size: tuple | None = None  # (width, height).
    content: bytes | None = None  # A hash of the file.
    changes: tuple = ()  # How a viewer shows it in another way than training sees it.
    levels: int = 0  # The difference between its brightest and its darkest value, 0 to 255.
    prints: list = ()  # The result of `copies.prints`.


def looks(changes, paths):
    """Look at image files, several at a time.

    Args:
        changes: function of a file's content that returns how a viewer shows it in another way than training sees it, a
            tuple of words.
        paths: list of paths.

    Yields: a `Look` for each of them.
    """
    # The decoder of training itself decodes the images, since other decoders accept other files.
    with quiet.tensorflow_import():
        from tripletreid.input_pipeline import images
    with multiprocessing.pool.ThreadPool(os.cpu_count()) as pool:  # Decoding and hashing run outside of Python's lock.
        yield from pool.imap(lambda path: _look(images.decode, changes, path), paths, chunksize=FILES_AT_ONCE)


def list_of_looks(changes, paths):
    """Return the results of `looks` as a list: a task for a worker of a cluster."""
    return list(looks(changes, paths))


def _look(decode, changes, path):
    """Return the `Look` at an image file, with the decoder of training."""
    import tensorflow as tf
    try:
        with open(path, 'rb') as file:
            content = file.read()
        pixels = decode(content).numpy()
    except OSError as error:
        return Look(error.strerror)
    except tf.errors.OpError:
        complaint = pictures.complaint(content).removeprefix('it is ') if content else ''
        return Look(complaint[:1].upper() + complaint[1:] or 'Not a whole image')
    height, width, _ = pixels.shape
    return Look(None, (width, height), hashlib.sha256(content).digest(), changes(content),
                int(pixels.max()) - int(pixels.min()), prints(content, pixels))

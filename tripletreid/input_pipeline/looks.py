"""Inspect image files before training: whether they can be used, their sizes and hashes."""
import hashlib
import multiprocessing.pool
import os
import typing

from tripletreid import pictures, quiet
from tripletreid.copies import prints

FILES_AT_ONCE = 16


class Look(typing.NamedTuple):
    """The properties of an image file."""
    problem: str | None  # the reason why it cannot be used
    size: tuple | None = None  # (width, height)
    content: bytes | None = None  # a hash of the file
    changes: tuple = ()  # differences between a viewer and training
    prints: list = ()  # the result of `copies.prints`


def looks(changes, paths):
    """Inspect image files, several in parallel.

    Args:
        changes: function of a file's content that returns how a viewer shows it differently from training, a tuple of
            phrases.
        paths: list of files.

    Yields: a `Look` for each of them.
    """
    # The decoder of training decodes the images, because others accept other files.
    with quiet.tensorflow_import():
        from tripletreid.input_pipeline import images
    with multiprocessing.pool.ThreadPool(os.cpu_count()) as pool:  # Decoding and hashing run outside of Python's lock.
        yield from pool.imap(lambda path: _look(images.decode, changes, path), paths, chunksize=FILES_AT_ONCE)


def list_of_looks(changes, paths):
    """Return the `looks` as a list: a task for a worker of a cluster."""
    return list(looks(changes, paths))


def _look(decode, changes, path):
    """Return the `Look` of an image file, with the decoder of training."""
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
                prints(content, pixels))

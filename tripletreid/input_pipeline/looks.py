"""What there is to see of an image file before it is trained with: whether it can be used, its size, its content."""
import hashlib
import multiprocessing.pool
import os
import typing

from tripletreid import pictures, quiet
from tripletreid.copies import prints

FILES_AT_ONCE = 16


class Look(typing.NamedTuple):
    """What is seen of an image file."""
    problem: str | None  # why it cannot be used
    size: tuple | None = None  # (width, height)
    content: bytes | None = None  # a hash of it
    changes: tuple = ()  # how a viewer shows it in another way than training sees it
    prints: list = ()  # what `copies.prints` returns


def looks(changes, paths):
    """Look at image files, several at a time.

    Args:
        changes: function of a file's content that tells how a viewer shows it in another way than training sees it, a
            tuple of words.
        paths: of the files, a list.

    Yields: a `Look` for each of them.
    """
    # The decoder of training itself looks at the images, since others accept what it does not.
    with quiet.tensorflow_import():
        from tripletreid.input_pipeline import images
    with multiprocessing.pool.ThreadPool(os.cpu_count()) as pool:  # Decoding and hashing run outside of Python's lock.
        yield from pool.imap(lambda path: _look(images.decode, changes, path), paths, chunksize=FILES_AT_ONCE)


def list_of_looks(changes, paths):
    """What `looks` yields, as a list: a task for a worker of a cluster."""
    return list(looks(changes, paths))


def _look(decode, changes, path):
    """The `Look` at an image file, with the decoder of training."""
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

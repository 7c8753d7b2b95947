"""MNIST: the four original files {train,t10k}-{images-idx3,labels-idx1}-ubyte, as they are or with .gz.

The images are exported once, as PNG into mnist_train/ and mnist_test/ next to them. The images of t10k are query and
test at once (excluder `diagonal`).

LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998.
"""
import gzip
import math
import struct
import zlib

from layouts import _files
from tripletreid.errors import InputError

EXCLUDER = 'diagonal'
TOTALS = {
    'train': {'identities': 10, 'images': 60000},
    'query': {'identities': 10, 'images': 10000},
    'test': {'identities': 10, 'images': 10000},
}


def splits(root):
    """Return the rows of each subset."""
    test = exported(root, 't10k', 'mnist_test')
    return {'train': exported(root, 'train', 'mnist_train'), 'query': test, 'test': test}


def exported(root, part, folder):
    """Return the rows of the images of one part, which are PNG files in `folder` afterwards."""
    pixels = read_idx(root, f'{part}-images', 3)  # [N, 28, 28]
    labels = read_idx(root, f'{part}-labels', 1)  # [N]
    if len(pixels) != len(labels):
        raise InputError(f'The files {part}-* in {root} have {len(pixels)} images, but {len(labels)} labels.')
    names = [f'{number:05}.png' for number in range(len(pixels))]
    _files.export_png(root, folder, zip(names, pixels), len(pixels))
    return [(str(label), f'{folder}/{name}') for label, name in zip(labels, names)]


def read_idx(root, name, rank):
    """Read the array, uint8, of an idx file: magic number 0x0800 + rank, the size of each axis (big endian), the values."""
    import numpy as np
    name = f'{name}-idx{rank}-ubyte'
    path = _files.find(root, name, f'{name}.gz')
    try:
        with gzip.open(path) if path.endswith('.gz') else open(path, 'rb') as file:
            content = file.read()
        magic, *shape = struct.unpack_from(f'>{1 + rank}I', content)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise InputError(f'{path} is damaged ({error}).') from error
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if magic != 0x0800 + rank or len(values) != math.prod(shape):
        raise InputError(f'{path} is damaged, or not an idx file of {rank} dimension(s) and bytes.')
    return values.reshape(shape)

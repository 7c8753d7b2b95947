"""The photos to search with: checks before they are decoded."""
import os

from tripletreid import pictures
from tripletreid.errors import InputError

MAX_BYTES = 1 << 28  # More than any photo, less than the memory of a computer.
MAX_STRETCH = 1.75  # Ratio of the proportions of photo and net input: a landscape where a person is expected.


def read(path):
    """Return the bytes of a photo.

    Raises:
        InputError: there is no file, or it is larger than any photo.
    """
    check(path)
    with open(path, 'rb') as file:
        return file.read()


def check(path):
    """Raise InputError if there is no file of a photo's size."""
    if not os.path.isfile(path):
        raise InputError(f'There is no photo {path}{", which is a folder" if os.path.isdir(path) else ""}.')
    if os.path.getsize(path) > MAX_BYTES:
        raise InputError(f'{path} has {os.path.getsize(path):,} bytes, far more than any photo.')


def doubts(content, size):
    """Return doubts about a photo by its header: a list of phrases without a subject.

    Args:
        content: its bytes.
        size: (height, width) of the net's input.
    """
    if pictures.complaint(content):
        return []
    width, height = pictures.header_sides(content)
    found = [f'is {doubt}' for doubt in pictures.doubts(content)]
    if width and height and not 1 / MAX_STRETCH < width / height / (size[1] / size[0]) < MAX_STRETCH:
        found.append(f'is {width} pixels wide and {height} high, and is squeezed to the {size[1]} by {size[0]} that the net '
                     f'sees: crop it to the person or object')
    return found

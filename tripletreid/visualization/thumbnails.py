"""Image files as small pictures with the pixels that the net sees; None for a missing or broken file."""
import concurrent.futures
import io
import itertools
import typing

import tqdm

from tripletreid import pictures
from tripletreid.errors import InputError


class Missing(typing.NamedTuple):
    """File ids of the images that cannot be shown, and of how many images in all."""
    fids: list
    images: int

    def sentence(self):
        """Return a sentence about them; there is at least one."""
        return (f'{len(self.fids)} of {self.images} images are missing, broken or outside of the image root, the first '
                f'of them {self.fids[0]}; placeholders stand for them.')


def thumbnails(paths, width, height):
    """Return the small pictures of many files, made in parallel.

    Args:
        paths: of image files; None stands for a missing one.
        width, height: largest size of a thumbnail, in pixels.

    Returns: an iterator over PIL images in RGB, None where there is no path or the file does not decode.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.map(thumbnail, paths, itertools.repeat(width), itertools.repeat(height))
        yield from tqdm.tqdm(made, 'Images', len(paths), delay=2, leave=False)


def jpeg(picture):
    """Return the bytes of a PIL image as JPEG."""
    file = io.BytesIO()
    picture.save(file, 'jpeg', quality=80)
    return file.getvalue()


def thumbnail(path, width, height):
    """Return the small picture of one file, or None; as `thumbnails`."""
    if path is None:
        return None
    try:
        image = pictures.read(path)
    except InputError:
        return None
    image.thumbnail((width, height))
    return image

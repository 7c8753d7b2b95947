"""Image files as small pictures with the pixels that the net sees, None for a missing or broken file; their addresses."""
import base64
import concurrent.futures
import io
import itertools
import os
import typing
import urllib.parse

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


def data_address(picture):
    """Return an address that contains a PIL image as JPEG, for a page; None for None."""
    return picture and 'data:image/jpeg;base64,' + base64.b64encode(jpeg(picture)).decode('ascii')


def linked(paths, width, height, page):
    """Return the addresses of image files for a page that links to them, relative to it; a list with None for None.

    Files that EXIF turns become small pictures instead. A browser turns them in a page that it opens from a disk, whatever
    the stylesheet says, and the net does not.

    Args:
        paths, width, height: as for `thumbnails`.
        page: path of the page.
    """
    folder = os.path.dirname(os.path.abspath(page))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        is_turned = list(pool.map(lambda path: path is not None and pictures.TURNED in pictures.doubts(path), paths))
    small = iter(list(map(data_address, thumbnails(list(itertools.compress(paths, is_turned)), width, height))))
    return [next(small) if turned else path and urllib.parse.quote(os.path.relpath(path, folder).replace(os.sep, '/'))
            for path, turned in zip(paths, is_turned)]


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

"""The photos to search with, as bytes, and what their headers already tell."""
import contextlib
import io
import os
import warnings

from PIL import Image

from tripletreid.errors import InputError

LARGEST_BYTES = 1 << 28  # What no photo has, and a memory does.
FAR = 1.75  # Times as wide, in proportion, as what the net sees, or a FAR-th: a landscape where a person is expected.
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright.


def check(path):
    """Raise InputError where there is no file of a photo's size."""
    if not os.path.isfile(path):
        raise InputError(f'There is no photo {path}{", which is a folder" if os.path.isdir(path) else ""}.')
    if os.path.getsize(path) > LARGEST_BYTES:
        raise InputError(f'{path} has {os.path.getsize(path):,} bytes, far more than any photo.')


def pixels(content):
    """How many pixels an image has by its header; None where that cannot be read.

    Raises:
        InputError: so many that Pillow takes it for an attack.
    """
    with _header(content) as image:
        return image and image.width * image.height


def doubts(content, size):
    """What may be wrong with a photo whose header reads well, a list of sentences without a subject.

    Args:
        content: its bytes.
        size: (height, width) that the net sees.
    """
    with _header(content) as image:
        if image is None:
            return []
        found = []
        proportion = image.width / image.height / (size[1] / size[0])
        if not 1 / FAR < proportion < FAR:
            found.append(f'is {image.width} pixels wide and {image.height} high, and is squeezed to the '
                         f'{size[1]} by {size[0]} that the net sees: crop it to what is searched for')
        try:
            turned = image.getexif().get(ORIENTATION, 1) != 1
        except Exception:  # Pillow raises whatever a damaged byte leads it to.
            turned = False
        if turned:
            found.append('is marked as turned (EXIF), which the net does not see: save it upright')
        return found


def _header(content):
    """A context manager that gives the image as Pillow opens it, its pixels not yet decoded, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Of many pixels: who decodes them says so.
        try:
            return Image.open(io.BytesIO(content), formats=['JPEG', 'PNG', 'GIF'])
        except Image.DecompressionBombError as error:
            raise InputError(f'The photo has far too many pixels ({error}).') from error
        except Exception:  # Likewise.
            return contextlib.nullcontext()

"""Convert pictures of many formats to JPEG files that look the same to training and to a viewer: upright, and on white."""
import contextlib
import errno
import hashlib
import io
import multiprocessing.pool
import os
import shutil
import typing
import warnings

from tripletreid.errors import InputError, some, warn
from tripletreid.files import folder_written_whole

# The formats that Pillow reads by itself, without EPS, for which it would run another program; HEIF with pillow-heif.
FORMATS = ('AVIF', 'BMP', 'GIF', 'HEIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
JPEG_SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.jpe', '.pjp', '.pjpeg')
HEIF_SUFFIXES = ('.heic', '.heif')
SUFFIXES = (*JPEG_SUFFIXES, *HEIF_SUFFIXES, '.avif', '.bmp', '.gif', '.jp2', '.pgm', '.png', '.ppm', '.tif', '.tiff',
            '.webp')
LONGEST_SIDE_OF_JPEG = 65500
DARK = 16  # Grey levels of 256; 12 bits in a picture of 16 bits give fewer.
LONGEST_NAME = 255  # Bytes, on most file systems.


def suffixes():
    """Return the endings of the pictures that can be converted here, which depends on the installed libraries."""
    from PIL import Image
    Image.init()
    try:
        import pillow_heif
        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    missing = {*(HEIF_SUFFIXES if 'HEIF' not in Image.OPEN else ()), *(('.avif',) if 'AVIF' not in Image.OPEN else ())}
    return tuple(suffix for suffix in SUFFIXES if suffix not in missing)


def convert(root, fids, target, max_side=None, bits=16):
    """Write JPEG copies of pictures into a new folder: of all that can be read, or no folder at all.

    JPEGs that are upright, RGB or grey, and not larger than `max_side` are copied byte for byte. The name of another
    copy is its original's and .jpg, so that a/1.png does not get in the way of a/1.jpg.

    Args:
        root: folder of the pictures, which stay as they are.
        fids: their paths relative to it.
        target: the new folder.
        max_side: the most pixels of the longer side; larger pictures are reduced. None: any number.
        bits: number of bits that 16-bit pictures use.

    Returns: {fid: path of its copy relative to `target`}, without pictures that cannot be read, of which it warns.

    Raises:
        InputError: `target` exists or lies in `root`, two copies would have one name, or no picture can be read.
    """
    import tqdm
    if os.path.lexists(target):
        raise InputError(f'{target} is there already; give --convert a new folder, or, if it holds the copies of an '
                         f'earlier run, give it in place of {root}, without --convert.')
    if os.path.join(os.path.realpath(target), '').startswith(os.path.join(os.path.realpath(root), '')):
        raise InputError(f'{target} lies in {root}, where its pictures would count as well; choose another folder.')
    copies = {fid: name_of_copy(fid) for fid in fids}
    for fid, copy in copies.items():
        if copy != fid and copy in copies:
            raise InputError(f'The copies of {fid} and {copy} in {root} would have one name; rename one of them.')
    suffixes()  # Registers the formats.
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
    with folder_written_whole(target) as unfinished, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow warns of odd metadata.

        def convert_one(fid):
            return _convert_one(os.path.join(root, fid), os.path.join(unfinished, copies[fid]), max_side, bits)

        pool = multiprocessing.pool.ThreadPool(os.cpu_count())  # Pillow decodes outside of Python's lock.
        try:
            outcomes = tqdm.tqdm(pool.imap(convert_one, copies), f'Writing {target}', len(copies), delay=2, leave=False)
            outcomes = dict(zip(copies, outcomes))
        finally:
            pool.terminate()
            pool.join()  # A thread that still writes after an error would restore the folder that is being removed.
        broken = {fid: outcome.problem for fid, outcome in outcomes.items() if outcome.problem}
        reasons = some(f'{fid}: {problem}' for fid, problem in broken.items())
        if len(broken) == len(copies):
            raise InputError(f'Not one of the pictures in {root} can be read: {reasons}.')
    if broken:
        warn(f'Pictures that cannot be read are skipped: {reasons}.')
    dark = [fid for fid, outcome in outcomes.items() if outcome.is_dark]
    if dark:
        warn(f'Copies that are almost black, without a pixel above {DARK - 1} of 255: {some(dark)}. If these pictures have '
             f'16 bits and use fewer, remove {target} and convert again with --bits, e.g. --bits 12.')
    return {fid: copy for fid, copy in copies.items() if fid not in broken}


def name_of_copy(fid):
    """Return the path of a picture's copy."""
    if fid.lower().endswith(('.jpg', '.jpeg')):
        return fid
    folder, name = os.path.split(fid)
    if len(os.fsencode(f'{name}.jpg')) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        name = os.fsencode(name)[:LONGEST_NAME - len(f'~{digest}.jpg')].decode('utf-8', 'ignore') + f'~{digest}'
    return os.path.join(folder, f'{name}.jpg')


class Outcome(typing.NamedTuple):
    """The result for one picture: the reason why it cannot be read, or None; and whether its copy is almost black."""
    problem: str | None = None
    is_dark: bool = False


def _convert_one(path, copy, max_side, bits):
    """Write the copy of one picture; return its `Outcome`."""
    from PIL import Image

    from tripletreid import pictures
    try:
        with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
            image.load()
            upright = image.getexif().get(pictures.ORIENTATION, 1) == 1
            fits = max_side is None or max(image.size) <= max_side
            as_it_is = image.format in ('JPEG', 'MPO') and image.mode in ('RGB', 'L') and upright and fits
            pixels = None if as_it_is else seen(image, bits)
            is_dark = not as_it_is and pixels.convert('L').getextrema()[1] < DARK
            content = None if as_it_is else _jpeg(pixels, max_side)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of many types for damaged files.
        if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO):
            raise
        return Outcome(getattr(error, 'strerror', None) or str(error).replace(f' {path!r}', ''))
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    if as_it_is:
        shutil.copyfile(path, copy)
    else:
        _write(copy, content)
    return Outcome(is_dark=is_dark)


def _write(path, content):
    with open(path, 'wb') as file:
        file.write(content)


def _jpeg(image, max_side):
    """Encode an image as JPEG; return bytes.

    Raises:
        ValueError: more pixels than a JPEG can have.
    """
    from PIL import Image
    if max_side is not None and max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if max(image.size) > LONGEST_SIDE_OF_JPEG:
        raise ValueError(f'{image.width}x{image.height} pixels are too many for a JPEG; give --max_side')
    content = io.BytesIO()
    image.save(content, 'JPEG', quality=95, subsampling=0)
    return content.getvalue()


def changes(content):
    """Return how a viewer shows an image file in another way than training sees it, a tuple of phrases.

    Args:
        content: the bytes of a JPEG, PNG or GIF.
    """
    from PIL import Image

    from tripletreid import pictures
    found = pictures.doubts(content)
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=['JPEG', 'PNG', 'GIF']) as image:
        if image.has_transparency_data and image.convert('RGBA').getchannel('A').getextrema()[0] < 255:
            found.append('transparent, which the net does not see')
    return tuple(found)


def seen(image, bits=16):
    """Return an image of Pillow as a viewer shows it, in mode RGB: the first frame, turned by EXIF, on white.

    A picture of 16 bits keeps the upper eight of the `bits` that it uses.

    Raises:
        ValueError: pixels of more than 16 bits, whose white level is unknown.
    """
    import numpy as np
    from PIL import Image, ImageOps
    image = ImageOps.exif_transpose(image)
    if image.mode == 'F' or image.mode.startswith('I'):
        pixels = np.asarray(image)
        if image.mode == 'F' or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError('its pixels have more than 16 bits')
        return Image.fromarray(np.minimum(pixels >> bits - 8, 255).astype(np.uint8)).convert('RGB')
    if not image.has_transparency_data:
        return image.convert('RGB')
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    white.alpha_composite(image)
    return white.convert('RGB')

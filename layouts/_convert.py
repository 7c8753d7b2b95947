"""Pictures of many formats to JPEG files that show in training what a viewer shows: upright, and on white."""
import contextlib
import io
import multiprocessing.pool
import os
import shutil
import warnings

from tripletreid.errors import InputError, some, warn
from tripletreid.files import folder_written_whole

# What Pillow reads by itself. No EPS, for which it would run another program.
FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
SUFFIXES = ('.avif', '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
ORIENTATION = 0x0112  # The number of EXIF's tag.


def convert(root, fids, target):
    """Write JPEG copies of pictures into a new folder: of all that can be read, or no folder at all.

    JPEGs that are upright, and RGB or grey, are copied byte for byte. The name of another copy is its original's and
    .jpg, so that a/1.png does not get in the way of a/1.jpg.

    Args:
        root: folder of the pictures, which are left as they are.
        fids: their paths relative to it.
        target: the new folder.

    Returns: {fid: path of its copy relative to `target`}. What cannot be read is a warning, and not among them.

    Raises:
        InputError: `target` is there already or lies in `root`, two copies would have one name, or no picture can be
            read.
    """
    import tqdm
    from PIL import Image
    if os.path.lexists(target):
        raise InputError(f'{target} is there already; give --convert a new folder, or, if it holds the copies of an '
                         f'earlier run, leave --convert out and give it in place of {root}.')
    if os.path.join(os.path.realpath(target), '').startswith(os.path.join(os.path.realpath(root), '')):
        raise InputError(f'{target} lies in {root}, where its pictures would count as well; choose another folder.')
    copies = {fid: name_of_copy(fid) for fid in fids}
    for fid, copy in copies.items():
        if copy != fid and copy in copies:
            raise InputError(f'The copies of {fid} and {copy} in {root} would have one name; rename one of them.')
    Image.init()
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
    with folder_written_whole(target) as unfinished, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, of odd metadata.

        def convert_one(fid):
            return _convert_one(os.path.join(root, fid), os.path.join(unfinished, copies[fid]))

        pool = multiprocessing.pool.ThreadPool(os.cpu_count())  # Pillow decodes outside of Python's lock.
        try:
            problems = tqdm.tqdm(pool.imap(convert_one, copies), f'Writing {target}', len(copies), delay=2, leave=False)
            broken = {fid: problem for fid, problem in zip(copies, problems) if problem}
        finally:
            pool.terminate()
            pool.join()  # What a thread still writes after an error would come back into the folder that is removed.
        reasons = some(f'{fid}: {problem}' for fid, problem in broken.items())
        if len(broken) == len(copies):
            raise InputError(f'Not one of the pictures in {root} can be read: {reasons}.')
    if broken:
        warn(f'Pictures that cannot be read are left out: {reasons}.')
    return {fid: copy for fid, copy in copies.items() if fid not in broken}


def name_of_copy(fid):
    """What the copy of a picture is called."""
    return fid if fid.lower().endswith(('.jpg', '.jpeg')) else f'{fid}.jpg'


def _convert_one(path, copy):
    """Write the copy of one picture; returns why it cannot be read, or None."""
    from PIL import Image
    try:
        with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
            image.load()
            upright = image.getexif().get(ORIENTATION, 1) == 1
            as_it_is = image.format in ('JPEG', 'MPO') and image.mode in ('RGB', 'L') and upright
            pixels = None if as_it_is else seen(image)
    except Exception as error:  # Pillow raises whatever a damaged byte leads it to.
        return getattr(error, 'strerror', None) or str(error).replace(f' {path!r}', '')
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    if as_it_is:
        shutil.copyfile(path, copy)
    else:
        pixels.save(copy, 'JPEG', quality=95, subsampling=0)
    return None


def changes(content):
    """What a viewer heeds in an image file and training does not: a tuple of phrases.

    Args:
        content: the bytes of a JPEG, PNG or GIF.
    """
    from PIL import Image
    found = []
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=['JPEG', 'PNG', 'GIF']) as image:
        # Pillow would decode a PNG to its end to look for EXIF.
        if (image.format != 'PNG' or b'eXIf' in content) and image.getexif().get(ORIENTATION, 1) != 1:
            found.append('turned by EXIF, which training ignores')
        if image.has_transparency_data and image.convert('RGBA').getchannel('A').getextrema()[0] < 255:
            found.append('transparent, which training ignores')
    return tuple(found)


def seen(image):
    """An image of Pillow as a viewer shows it, in mode RGB: the first frame, turned by EXIF, on white.

    Of 16 bits the upper eight are left, as of a PNG that training reads.

    Raises:
        ValueError: pixels of more than 16 bits, of which nobody knows what is white.
    """
    import numpy as np
    from PIL import Image, ImageOps
    image = ImageOps.exif_transpose(image)
    if image.mode == 'F' or image.mode.startswith('I'):
        pixels = np.asarray(image)
        if image.mode == 'F' or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError('its pixels have more than 16 bits')
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert('RGB')
    if not image.has_transparency_data:
        return image.convert('RGB')
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    white.alpha_composite(image)
    return white.convert('RGB')

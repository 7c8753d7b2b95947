"""Decode pictures for the eye, and judge them by their bytes: the pixels that the net sees, without TensorFlow.

`decode` is the public function for whatever shows, cuts or exports pictures (thumbnails, crops, examples). It returns the
same pixels as the net's decoder with `--jpeg accurate`: no EXIF rotation, transparency ignored, the upper 8 of 16 bits.
"""
import io
import math
import multiprocessing.pool
import os
import struct
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from tripletreid.errors import InputError

MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs, about 13,000 x 13,000.
MAX_SCANS = 100  # A progressive JPEG has about 10 scans. Each scan costs as much time as decoding a picture.
MAX_SEGMENTS = 1 << 16  # Pieces of a JPEG before its pixels; a camera writes a dozen, a panorama some hundred.
MAX_BYTES = 1 << 30  # A picture of MAX_PIXELS without compression takes half of this.
ORIENTATION = 0x0112  # EXIF tag; 1 means upright.
FULL_RANGE = 1 << 12  # A 16-bit picture without a pixel above this value shows as almost black.
TURNED = 'turned by EXIF, which the net does not see'
DARK = 'of 16 bits, but almost black, because their pixels use at most 12 bits'
REMEDIES = {TURNED: 'make_dataset.py folder --convert writes upright copies',
            DARK: 'scale their pixels to the full range first'}
THREADS = 16  # A network file system answers slowly.
JPEG, PNG, GIF = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF8'


class Pixels(NamedTuple):
    """How image files become pixels: the stored flags --resize and --jpeg of a run."""
    resize: str = 'tf1'
    jpeg: str = 'fast'

    @classmethod
    def from_args(cls, args):
        """Return the `Pixels` of a run's arguments; a model without an args.json has the defaults."""
        return cls(**{name: getattr(args, name, default) for name, default in cls._field_defaults.items()})


def read(path):
    """Decode a picture file as `decode` does.

    Raises:
        InputError: the file cannot be read or decoded; the message names it.
    """
    try:
        return decode(read_file(path))
    except InputError as error:
        raise InputError(f'The picture {path} cannot be read: {error}.') from error


def read_file(path):
    """Return the bytes of a picture file. A named pipe or a device, which could block, is refused.

    Raises:
        InputError: the reason, without a subject and a full stop.
    """
    try:
        if not os.path.isfile(path):
            raise InputError('it is not a file' if os.path.exists(path) else 'no such file')
        if os.path.getsize(path) > MAX_BYTES:
            raise InputError(f'it has more than {MAX_BYTES:,} bytes')
        with open(path, 'rb') as file:
            return file.read()
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error


def decode(content):
    """Decode the bytes of a JPEG, PNG or GIF file to a PIL image in mode RGB, with the pixels that the net sees.

    Raises:
        InputError: the reason, without a subject and a full stop, e.g. 'it is empty'.
    """
    reason = complaint(content)
    if reason:
        raise InputError(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow warns of odd metadata and of large pictures.
            with Image.open(io.BytesIO(_lean(content)), formats=['JPEG', 'PNG', 'GIF']) as image:
                return _first_frame(image) if image.format == 'GIF' else _upper_bits(image).convert('RGB')
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of many types for damaged files.
        raise InputError('it is damaged') from error


def _upper_bits(image):
    """Return an image of 8 bits; Pillow itself would clip a grey image of 16 bits."""
    if not image.mode.startswith('I'):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _first_frame(image):
    """Return the frame of a GIF as TensorFlow does: in the size of the frame, transparent pixels black."""
    left, top, right, bottom = image.tile[0][1]
    pixels = np.asarray(image.convert('RGBA'))[top:bottom, left:right]
    frame = np.zeros((bottom - top, right - left, 3), np.uint8)
    inside = np.where(pixels[..., 3:], pixels[..., :3], 0)[:max(0, len(frame) - top), :max(0, frame.shape[1] - left)]
    frame[top:top + inside.shape[0], left:left + inside.shape[1]] = inside
    return Image.fromarray(frame)


def complaint(content, max_pixels=MAX_PIXELS):
    """Return why the header of a picture forbids decoding it, without a subject and a full stop; '' if nothing does.

    The number of pixels and of scans is checked here, before memory and time are spent on them.

    Args:
        content: bytes of the file.
        max_pixels: the largest number of pixels.
    """
    if not content:
        return 'it is empty'
    if not content.startswith((JPEG, PNG, GIF)):
        return 'it is neither a JPEG, a PNG nor a GIF'
    if content.startswith(JPEG) and content.count(b'\xff\xda') > MAX_SCANS:  # In compressed data 0 follows each 255.
        return too_many_scans()
    if content.startswith(GIF) and len(_gif_frames(content)) > 1:
        return 'it is an animated GIF'
    try:
        width, height = header_sides(content)
    except InputError as error:
        return str(error)
    return too_large(max_pixels) if width * height > max_pixels else ''


def header_sides(content):
    """Return the (width, height) of a picture, by its header alone; (0, 0) where that has none.

    Args:
        content: bytes of a JPEG, PNG or GIF file.
    """
    if content.startswith(JPEG):
        return _jpeg_sides(content)
    if content.startswith(PNG):
        return struct.unpack('>II', content[16:24].ljust(8, b'\0'))
    return max(_gif_frames(content), default=(0, 0), key=math.prod)


def too_large(max_pixels=MAX_PIXELS):
    """Return the complaint about a picture of too many pixels."""
    return f'it has more than {max_pixels:,} pixels'


def too_many_scans():
    """Return the complaint about a JPEG of too many scans."""
    return f'it has more than {MAX_SCANS} scans, each of which would take the time of decoding it'


def sides(path):
    """Return (height, width) of a picture file by its header, (0, 0) if that cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path, formats=['JPEG', 'PNG', 'GIF']) as image:
                left, top, right, bottom = image.tile[0][1] if image.format == 'GIF' else (0, 0, *image.size)
                return bottom - top, right - left
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of many types for damaged files, which the decoder reports.
        return 0, 0


def _jpeg_sides(content):
    """Return the largest (width, height) that any frame header of a JPEG declares, (0, 0) without one."""
    frames = [struct.unpack('>HH', content[start + 5:start + 9])[::-1] for marker, start, _ in _jpeg_segments(content)
              if 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc)]
    return max(frames, default=(0, 0), key=math.prod)


def _jpeg_segments(content):
    """Yield (marker, start, stop) of the segments of a JPEG before its first scan; InputError if there are too many."""
    place, count = 2, 0
    while place + 9 <= len(content):
        if (count := count + 1) > MAX_SEGMENTS:
            raise InputError(f'it has more than {MAX_SEGMENTS:,} segments before its pixels')
        if content[place] != 0xff:  # Padding or damage between segments.
            place = content.find(b'\xff', place)
            if place < 0:
                return
            continue
        marker = content[place + 1]
        if marker == 0xff or marker == 0 or 0xd0 <= marker <= 0xd8 or marker == 1:  # Markers without a length.
            place += 1 if marker == 0xff else 2
            continue
        if marker in (0xda, 0xd9):  # Compressed data or the end.
            return
        stop = place + 2 + struct.unpack('>H', content[place + 2:place + 4])[0]
        yield marker, place, stop
        place = stop


def _lean(content):
    """Return a JPEG without metadata, except its first Exif segment. Pillow's time is quadratic in their number."""
    if not content.startswith(JPEG):
        return content
    parts, kept_from, has_exif = [], 0, False
    for marker, start, stop in _jpeg_segments(content):
        is_exif = marker == 0xe1 and content[start + 4:start + 10] == b'Exif\0\0'
        # 0xe0 and 0xee, JFIF and Adobe, decide on the colours.
        if 0xe1 <= marker <= 0xef and marker != 0xee and not (is_exif and not has_exif) or marker == 0xfe:
            parts.append(content[kept_from:start])
            kept_from = stop
        has_exif |= is_exif
    return b''.join([*parts, content[kept_from:]])


def _gif_frames(content):
    """Return the (width, height) of the frames of a GIF, a list that may miss frames after damaged bytes."""
    frames, place = [], 13

    def after_blocks(place):
        while place < len(content) and content[place]:
            place += 1 + content[place]
        return place + 1

    def after_colors(place, flags):
        return place + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)

    if len(content) > 10:
        place = after_colors(place, content[10])
    while place + 10 <= len(content):
        if content[place] == 0x2c:
            frames.append(struct.unpack('<HH', content[place + 5:place + 9]))
            place = after_blocks(after_colors(place + 10, content[place + 9]) + 1)
        elif content[place] == 0x21:
            place = after_blocks(place + 2)
        else:
            break
    return frames


def doubts(picture):
    """Return the surprises in a picture, which the net sees and a person would not expect: phrases without a subject.

    Args:
        picture: path of a JPEG, PNG or GIF file, or its bytes. Only the header of most files is read.
    """
    found = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            file = io.BytesIO(_lean(picture)) if isinstance(picture, bytes) else picture
            with Image.open(file, formats=['JPEG', 'PNG', 'GIF']) as image:
                # Pillow would decode a whole PNG to search it for EXIF after the pixels.
                if (image.format != 'PNG' or 'exif' in image.info) and image.getexif().get(ORIENTATION, 1) != 1:
                    found.append(TURNED)
                # Pillow opens colours of 16 bits in a mode of 8, and names the bits of the file in `tile` alone.
                if '16B' in str(image.tile) and np.asarray(_upper_bits(image).convert('RGB')).max() < FULL_RANGE >> 8:
                    found.append(DARK)
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of many types for damaged files, which the decoder reports.
        pass
    return found


def doubts_of_files(fids, path_of, most=1000):
    """Return the `doubts` about image files, as warnings: a list with at most one sentence per kind.

    Args:
        fids: file ids. At most `most` of the files are opened, evenly spaced, in parallel.
        path_of: function of a file id, its path.
    """
    places = np.linspace(0, len(fids) - 1, min(most, len(fids))).round().astype(int)
    paths = [path_of(fids[place]) for place in places]
    with multiprocessing.pool.ThreadPool(THREADS) as pool:
        found = dict(zip(paths, pool.map(doubts, paths, chunksize=16)))
    sentences = []
    for doubt, remedy in REMEDIES.items():
        doubtful = [path for path, each in found.items() if doubt in each]
        if doubtful:
            sentences.append(f'{len(doubtful)} of {len(paths)} images that were checked are {doubt}, e.g. {doubtful[0]}: '
                             f'{remedy}.')
    return sentences

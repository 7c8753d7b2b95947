#!/usr/bin/env python3
"""Crop the boxes of a detector out of photos, so that search.py can search for them. Needs NumPy and Pillow.

    python examples/crop_by_boxes.py boxes.csv photos crops

Each line of boxes.csv is photo,left,top,right,bottom: a file in the folder `photos` and a box in pixels, counted from the
upper left corner of the upright photo (a phone often stores it turned, with a note in EXIF). A header line, empty lines and
further columns are ignored. Crops are PNG files, named after the photo and the number of the line.
"""
import csv
import math
import pathlib
import sys

from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tripletreid import pictures
from tripletreid.errors import InputError, exit_with, warn

UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # By EXIF's orientation.


def main():
    if len(sys.argv) != 4:
        raise InputError('three arguments are needed: boxes.csv, the folder of the photos, and the folder of the crops')
    boxes, photos, crops = map(pathlib.Path, sys.argv[1:])
    if not photos.is_dir():
        raise InputError(f'There is no folder {photos}.')
    crops.mkdir(parents=True, exist_ok=True)
    written = 0
    for number, name, box in read_boxes(boxes):
        photo = upright(photos / name)
        crop(photo, box, f'{boxes}, line {number}').save(crops / f'{pathlib.Path(name).stem}_{number}.png')
        written += 1
    if not written:
        raise InputError(f'{boxes} has no boxes.')
    print(f'{written} crops: {crops}')


def read_boxes(path):
    """Yield (number of the line, photo, (left, top, right, bottom)) of a csv file."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            lines = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f'{path} is not a csv file in UTF-8 ({error}).') from error
    for number, fields in enumerate(lines, 1):
        if not any(field.strip() for field in fields):
            continue
        numbers = [as_number(field) for field in fields[1:5]]
        if number == 1 and len(numbers) == 4 and set(numbers) == {None}:
            continue  # A header.
        if len(numbers) < 4 or None in numbers:
            raise InputError(f'{path}, line {number}: "{",".join(fields)}" is not photo,left,top,right,bottom with four '
                             f'numbers.')
        yield number, fields[0].strip(), numbers


def as_number(text):
    """Return a finite number, or None for another text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def upright(path):
    """Return a photo with the pixels that the net sees, turned as its EXIF data say."""
    photo = pictures.read(path)
    with Image.open(path) as image:
        turn = UPRIGHT.get(image.getexif().get(pictures.ORIENTATION))
    return photo if turn is None else photo.transpose(turn)


def crop(photo, box, place):
    """Return the part of a photo in a box, which is clipped to the photo.

    Args:
        photo: PIL image.
        box: (left, top, right, bottom) in pixels.
        place: of the box in its file, for messages.
    """
    left, top, right, bottom = map(round, box)
    if right <= left or bottom <= top:
        raise InputError(f'{place}: the box from ({left}, {top}) to ({right}, {bottom}) is empty. Its corners are left,top '
                         f'and right,bottom, not its size.')
    clipped = max(0, left), max(0, top), min(photo.width, right), min(photo.height, bottom)
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise InputError(f'{place}: the box from ({left}, {top}) to ({right}, {bottom}) is outside of the photo, which has '
                         f'{photo.width} x {photo.height} pixels.')
    if clipped != (left, top, right, bottom):
        warn(f'{place}: the box is clipped to the photo, which has {photo.width} x {photo.height} pixels.')
    return photo.crop(clipped)


if __name__ == '__main__':
    exit_with(main)

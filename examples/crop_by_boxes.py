#!/usr/bin/env python3
"""Cut what a detector has found out of photos, so that search.py can look for it. Needs nothing but Pillow.

    python examples/crop_by_boxes.py boxes.csv photos crops

Each line of boxes.csv is photo,left,top,right,bottom: a file in `photos`, and pixels in it, counted from its upper left
corner. The crops are PNG files named after the photo and the number of the line.
"""
import csv
import pathlib
import sys

from PIL import Image


def main(boxes, photos, crops):
    pathlib.Path(crops).mkdir(parents=True, exist_ok=True)
    with open(boxes, encoding='utf-8', newline='') as file:
        for number, (name, *sides) in enumerate(csv.reader(file), 1):
            with Image.open(pathlib.Path(photos, name)) as photo:
                crop = photo.convert('RGB').crop([round(float(side)) for side in sides])
            crop.save(pathlib.Path(crops, f'{pathlib.Path(name).stem}_{number}.png'))


if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

"""MOTChallenge: sequences with gt/gt.txt, as in MOT17/train. The boxes of its persons are cut out as PNG files.

An identity is a person of one sequence. The third column names tracklets: boxes without a gap between them, at most
--tracklet_frames. With --test_sequences these are not trained on: of each person with several walks, which are more than
--walk_gap frames apart, the first walk is query, and the others are the test set, like everybody else. A sequence is one
camera (excluder `diagonal`). MOT17 has each sequence three times, once per detector; one of them is taken.

Milan et al., MOT16: A Benchmark for Multi-Object Tracking, arXiv 1603.00831.
"""
import collections
import configparser
import csv
import itertools
import math
import os
import re
import typing

from layouts import _files
from tripletreid.argument_types import fraction, positive_int
from tripletreid.errors import InputError, some, warn

EXCLUDER = 'diagonal'
TOTALS = {'train': {}, 'query': {}, 'test': {}}
GROUND_TRUTH = os.path.join('gt', 'gt.txt')
COLUMNS = ('frame', 'id', 'left', 'top', 'width', 'height', 'considered', 'class', 'visibility')
PEDESTRIAN = 1
DETECTOR = r'-(DPM|FRCNN|SDP)$'


def add_arguments(parser):
    parser.add_argument('--test_sequences', nargs='+', metavar='NAME', default=(),
                        help='sequences that are tested, the others train (none: all train)')
    parser.add_argument('--min_visibility', type=fraction, default=0.5, metavar='V',
                        help='skip boxes with a lower visibility, 0 to 1 (default: %(default)s)')
    parser.add_argument('--every', type=positive_int, default=5, metavar='N',
                        help='take every Nth frame (default: %(default)s)')
    parser.add_argument('--walk_gap', type=positive_int, default=50, metavar='N',
                        help='frames without a person that end a walk: query and test set show different walks, since '
                             'frames of one moment are found by any net (default: %(default)s)')
    parser.add_argument('--tracklet_frames', type=positive_int, default=16, metavar='N',
                        help='the most boxes per tracklet (default: %(default)s)')


class Box(typing.NamedTuple):
    """A box of the ground truth; pixels count from 1, as the frames do."""
    frame: int
    person: int
    left: float
    top: float
    width: float
    height: float


def splits(root, test_sequences=(), min_visibility=0.5, every=5, tracklet_frames=16, walk_gap=50):
    """Return the rows of each subset; write the crops, all or none, into a folder of `root` for these options.

    Args:
        root: the folder of the sequences.
        test_sequences: names of sequences.
        min_visibility: the least visibility, as the ground truth gives it.
        every: take every Nth frame.
        tracklet_frames: the most boxes of a tracklet.
        walk_gap: more frames than these without a person end a walk.
    """
    sequences = sequences_of(root)
    unknown = [name for name in test_sequences if name not in sequences]
    if unknown:
        raise InputError(f'--test_sequences: there is no sequence {unknown[0]} with ground truth in {root}, but '
                         f'{", ".join(sequences)}.')
    boxes = {name: read_boxes(os.path.join(root, name, GROUND_TRUTH), min_visibility, every) for name in sequences}
    boxes = {name: with_frames(root, name, its_boxes) for name, its_boxes in boxes.items()}
    total = sum(map(len, boxes.values()))
    if not total:
        raise InputError(f'No box of the ground truth in {root} is to be taken, of every {every}th frame those with a '
                         f'visibility of {min_visibility}; lower --min_visibility or --every.')
    folder = f'crops_every_{every}_visibility_{min_visibility:g}'
    crops = itertools.chain(*(crops_of(root, name, its_boxes) for name, its_boxes in boxes.items()))
    _files.export_png(root, folder, crops, total)

    subsets = {'train': [], 'query': [], 'test': []}
    for name, its_boxes in boxes.items():
        for person, path in by_person(its_boxes).items():
            walks = divided(path, walk_gap)
            tracklets = [(place, tracklet) for place, walk in enumerate(walks)
                         for tracklet in divided(walk, every, tracklet_frames)]
            for number, (walk, tracklet) in enumerate(tracklets):
                subset = 'train'
                if name in test_sequences:
                    subset = 'query' if walk == 0 and len(walks) > 1 else 'test'
                subsets[subset] += [(f'{name}_{person}', f'{folder}/{crop_name(name, box)}', f'{name}_{person}_{number}')
                                    for box in tracklet]
    if test_sequences and not subsets['query']:
        warn(f'Nobody in {", ".join(test_sequences)} has two walks that are more than {walk_gap} frames apart: there are no '
             f'queries. Lower --walk_gap, or test other sequences.')
    return {subset: rows for subset, rows in subsets.items() if rows}


def sequences_of(root):
    """Return the sorted names of the folders in `root` that have ground truth.

    Raises:
        InputError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    found = [name for name in sorted(os.listdir(root)) if os.path.isfile(os.path.join(root, name, GROUND_TRUTH))]
    if not found:
        deeper = [name for name in sorted(os.listdir(root)) if os.path.isdir(os.path.join(root, name)) and any(
            os.path.isfile(os.path.join(root, name, each, GROUND_TRUTH)) for each in os.listdir(os.path.join(root, name)))]
        raise InputError(f'There is no sequence with {GROUND_TRUTH} in {root}'
                         f'{f", but in its folder {deeper[0]}: give that one" if deeper else ""}.')
    once = {}
    for name in found:
        once.setdefault(re.sub(DETECTOR, '', name), name)
    if len(once) < len(found):
        warn(f'Sequences that are another one with other detections are skipped: '
             f'{some(set(found) - set(once.values()))}.')
    return list(once.values())


def read_boxes(path, min_visibility, every):
    """Read the boxes of a ground truth that are to be taken, in the order of its lines.

    Raises:
        InputError: a line that does not have the nine numbers of `COLUMNS`.
    """
    boxes = []
    with open(path, encoding='utf-8', errors='replace', newline='') as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if not cells:
                continue
            try:
                line = dict(zip(COLUMNS, map(float, cells), strict=True))
            except ValueError:
                line = {}
            if not line or not all(map(math.isfinite, line.values())):
                raise InputError(f'{path} has {",".join(cells)!r} in line {number}, where nine numbers are expected: '
                                 f'{", ".join(COLUMNS)}.')
            frame = int(line['frame'])
            is_person = line['considered'] and line['class'] == PEDESTRIAN
            if is_person and line['visibility'] >= min_visibility and (frame - 1) % every == 0:
                boxes.append(Box(frame, int(line['id']), *(line[name] for name in ('left', 'top', 'width', 'height'))))
    return boxes


def with_frames(root, name, boxes):
    """Return the boxes of a sequence that lie in existing frames; warn of the others."""
    from PIL import Image
    size_of_frame = {}
    missing = set()
    path_of = frame_paths(root, name)
    for frame in sorted({box.frame for box in boxes}):
        path = path_of(frame)
        try:
            with Image.open(path, formats=('JPEG', 'PNG')) as image:
                size_of_frame[frame] = image.size
        except FileNotFoundError:
            missing.add(os.path.relpath(path, root))
        except Exception as error:  # Pillow raises errors of many types for damaged files.
            raise InputError(f'{path} is damaged, or not a JPEG or PNG image ({error}).') from error
    if missing:
        warn(f'Missing frames, whose boxes are skipped: {some(missing)}.')
    inside = [box for box in boxes if box.frame in size_of_frame and clipped(box, *size_of_frame[box.frame])]
    outside = len([box for box in boxes if box.frame in size_of_frame]) - len(inside)
    if outside:
        warn(f'{outside} boxes of {name} lie outside of their frames and are skipped.')
    return inside


def frame_paths(root, name):
    """Return a function from frame to path; seqinfo.ini names them where they are not called img1/000001.jpg."""
    info = configparser.ConfigParser(interpolation=None)
    path = os.path.join(root, name, 'seqinfo.ini')
    try:
        info.read(path, encoding='utf-8')
        folder, ending = (info.get('Sequence', key, fallback=usual) for key, usual in (('imDir', 'img1'), ('imExt', '.jpg')))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}).') from error
    if folder in ('', '.', '..') or '/' in folder + ending or os.sep in folder + ending:
        raise InputError(f'{path} names {folder}/000001{ending} for a frame, which is not in a folder of {name}.')
    return lambda frame: os.path.join(root, name, folder, f'{frame:06}{ending}')


def clipped(box, width, height):
    """Return the pixels (left, top, right, bottom) of a box that are in its frame, counted from 0, or None."""
    left, top = round(box.left) - 1, round(box.top) - 1
    right, bottom = left + round(box.width), top + round(box.height)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def crops_of(root, name, boxes):
    """Yield the name and the pixels, uint8 [H, W, 3], of the boxes of a sequence; each frame is read once."""
    import numpy as np

    from tripletreid import pictures
    path_of = frame_paths(root, name)
    for frame, boxes_in_frame in itertools.groupby(sorted(boxes), key=lambda box: box.frame):
        pixels = np.asarray(pictures.read(path_of(frame)))
        for box in boxes_in_frame:
            left, top, right, bottom = clipped(box, *reversed(pixels.shape[:2]))
            yield crop_name(name, box), pixels[top:bottom, left:right]


def crop_name(name, box):
    """Return the name of a crop, such as 'MOT17-02/3_000121.png' of person 3 in frame 121."""
    return f'{name}/{box.person}_{box.frame:06}.png'


def by_person(boxes):
    """Return {number of a person: its boxes in the order of their frames}."""
    boxes_of_person = collections.defaultdict(list)
    for box in sorted(boxes):
        boxes_of_person[box.person].append(box)
    return boxes_of_person


def divided(boxes, gap, most=None):
    """Divide the boxes of a person, in the order of their frames, where more than `gap` frames pass, and after `most`."""
    parts = []
    for box in boxes:
        if not parts or len(parts[-1]) == most or box.frame - parts[-1][-1].frame > gap:
            parts.append([])
        parts[-1].append(box)
    return parts

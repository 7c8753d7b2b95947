#!/usr/bin/env python3
"""Track persons through the frames of a video by appearance and position, with a model exported as ONNX.

    python freeze.py --experiment_root DIR --frozen_model_path model.onnx
    python examples/tracker/track.py MOT17-02/ --model model.onnx --out tracks.txt
    python examples/tracker/track.py MOT17-02/ --model model.onnx --out tracks.txt --score MOT17-02/gt/gt.txt

This file needs nothing of the project: onnxruntime, NumPy, SciPy and Pillow are enough. A sequence is a folder in the
layout of MOTChallenge: frames as img1/000001.jpg and so on, detections in det/det.txt, one line per box:
frame,-1,left,top,width,height,confidence. The result has MOTChallenge's format with the number of the track in place of
-1.

In each frame, the detections are assigned to the tracks by the Hungarian algorithm. The cost is the cosine distance
between the detection's embedding and the running mean of the track's embeddings. A pair is possible if the distance is
below --max_distance and if the box lies where the track can be: near the position that its velocity predicts, within a
radius that grows with the number of frames since the track was seen. Two detections of one frame are never one track.
"""
import argparse
import collections
import csv
import json
import os
import sys

import numpy as np
import onnxruntime
from PIL import Image
from scipy.optimize import linear_sum_assignment

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
BATCH_SIZE = 64
IMPOSSIBLE = 1e6  # Cost of a pair that must not be assigned.
MOMENTUM = 0.9  # Fraction of a track's mean embedding that one more detection keeps.
SAME_PLACE = 0.5  # IoU from which a tracked box counts as found, as in MOTChallenge.


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('sequence', help='folder with img1/ and det/det.txt')
    add('--model', required=True, metavar='ONNX', help='exported model')
    add('--out', required=True, metavar='TXT', help='file to write the tracks to')
    add('--detections', metavar='TXT', help='boxes to track (default: det/det.txt of the sequence)')
    add('--min_confidence', type=float, default=0.5, metavar='C', help='ignore detections below this confidence (default: '
        '%(default)s)')
    add('--max_distance', type=float, default=0.4, metavar='D', help='largest cosine distance between a detection and its '
        'track; take the threshold of an evaluation at the FPR that you accept (default: %(default)s)')
    add('--max_age', type=int, default=30, metavar='N', help='frames after which a track that is not seen ends (default: '
        '%(default)s)')
    add('--max_speed', type=float, default=0.5, metavar='F', help='distance that a person can move between two frames '
        'away from the predicted position, in box heights (default: %(default)s)')
    add('--score', metavar='TXT', help='true tracks, to print identity switches, IDF1 and association accuracy')
    args = parser.parse_args()
    try:
        tracks = track(args)
        write(args.out, tracks)
        print(f'{len({box[1] for box in tracks})} tracks of {len(tracks)} boxes: {args.out}')
        if args.score:
            true = [row for row in read(args.score) if row[6] != 0]  # MOTChallenge marks boxes to ignore with 0.
            print(' | '.join(f'{name}: {value}' if isinstance(value, int) else f'{name}: {value:.2%}' for name, value in
                             score(tracks, true).items()))
    except (OSError, ValueError) as error:
        sys.exit(f'track.py: error: {error}')


def track(args):
    """Return the tracked boxes of a sequence, a list of (frame, track, left, top, width, height, confidence)."""
    embed = load(args.model)
    path = args.detections or os.path.join(args.sequence, 'det', 'det.txt')
    detections = [row for row in read(path) if row[6] >= args.min_confidence]
    if not detections:
        raise ValueError(f'{path} has no detection with a confidence of {args.min_confidence} or more (--min_confidence).')
    tracks, found, outside, started = [], [], 0, 0
    for frame in sorted({row[0] for row in detections}):
        boxes = np.array([row[2:7] for row in detections if row[0] == frame])
        with Image.open(os.path.join(args.sequence, 'img1', f'{frame:06}.jpg')) as image:
            crops, inside = cut(image.convert('RGB'), boxes[:, :4])
        outside += int((~inside).sum())
        boxes = boxes[inside]
        tracks = [each for each in tracks if frame - each.frame <= args.max_age]
        embs = embed(crops)
        costs = np.full((len(tracks), len(boxes)), IMPOSSIBLE)
        for row, each in enumerate(tracks):
            distances = 1 - embs @ each.direction()
            possible = (distances <= args.max_distance) & each.reaches(boxes, frame, args.max_speed)
            costs[row, possible] = distances[possible]
        track_of_box = {column: tracks[row] for row, column in zip(*linear_sum_assignment(costs))
                  if costs[row, column] < IMPOSSIBLE}
        for column, (box, emb) in enumerate(zip(boxes, embs)):
            if column not in track_of_box:
                started += 1
                track_of_box[column] = Track(started)
                tracks.append(track_of_box[column])
            track_of_box[column].add(frame, box, emb)
            found.append((frame, track_of_box[column].number, *box))
    if outside:
        print(f'Warning: {outside} boxes lie outside of their frames and are ignored.', file=sys.stderr)
    return found


class Track:
    """One person: the last box, its velocity, and the running mean of the embeddings."""

    def __init__(self, number):
        self.number, self.frame, self.box, self.velocity, self.mean = number, None, None, np.zeros(2), None

    def add(self, frame, box, emb):
        """Extend the track by a detection: box [4+] with left, top, width and height, emb [D] of length 1."""
        if self.box is not None:
            self.velocity = (centre(box) - centre(self.box)) / (frame - self.frame)
            emb = MOMENTUM * self.mean + (1 - MOMENTUM) * emb
        self.frame, self.box, self.mean = frame, box, emb

    def direction(self):
        """Return the mean embedding with length 1, float32 [D]."""
        return self.mean / max(np.linalg.norm(self.mean), 1e-12)

    def reaches(self, boxes, frame, max_speed):
        """Return which boxes [N, 4+] of a frame the person can have reached, bool [N]."""
        gap = frame - self.frame
        predicted = centre(self.box) + self.velocity * gap
        nearest = np.minimum(np.linalg.norm(centre(boxes) - predicted, axis=1),
                             np.linalg.norm(centre(boxes) - centre(self.box), axis=1))
        return nearest <= max_speed * gap * np.maximum(self.box[3], boxes[:, 3])


def centre(boxes):
    """Return the centres [..., 2] of boxes [..., 4+]."""
    return boxes[..., :2] + boxes[..., 2:4] / 2


def cut(image, boxes):
    """Cut boxes [N, 4] out of a frame.

    Returns: a list of images, one per box that overlaps the frame; which boxes do, bool [N].
    """
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], axis=1).round().astype(int)
    corners = np.clip(corners, 0, [image.width, image.height] * 2)
    inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    return [image.crop(corner.tolist()) for corner in corners[inside]], inside


def load(path):
    """Return a function from a list of images to their embeddings of length 1, float32 [N, D], by an ONNX file.

    The file's input says how: [batch, 3, height, width] takes RGB normalised by ImageNet's mean and standard deviation,
    as trackers exchange models; [batch, height, width, 3] takes RGB from 0 to 255.
    """
    try:
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    except Exception as error:  # The errors of onnxruntime have no class in common.
        raise ValueError(f'onnxruntime does not load {path}: {" ".join(str(error).split())}') from error
    if len(session.get_inputs()) != 1:
        raise ValueError(f'{path} takes {len(session.get_inputs())} inputs; a model of this tracker takes images only.')
    card = json.loads(session.get_modelmeta().custom_metadata_map.get('model_card', '{}'))
    if card.get('metric') not in (None, 'cosine'):
        print(f'Warning: {path} is compared by cosine distances here, and its model card has the metric {card["metric"]}: '
              f'take --max_distance from an evaluation with --metric cosine.', file=sys.stderr)
    given = session.get_inputs()[0]
    is_channels_first = given.shape[1:2] == [3]
    height, width = given.shape[2:] if is_channels_first else given.shape[1:3]
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ValueError(f'{path} takes images of any size: export it for one (freeze.py without --any_size).')
    fixed_batch = given.shape[0] if isinstance(given.shape[0], int) else None

    def embed(images):
        rows = []
        step = fixed_batch or BATCH_SIZE
        for first in range(0, len(images), step):
            some = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images[first:first + step]]
            pixels = np.stack([np.asarray(image) for image in some])
            if is_channels_first:
                pixels = ((pixels / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2)
            if given.type == 'tensor(float)':
                pixels = pixels.astype(np.float32)
            pixels = np.concatenate([pixels, np.zeros((step - len(pixels) if fixed_batch else 0, *pixels.shape[1:]),
                                                      pixels.dtype)])
            rows.append(session.run(None, {given.name: pixels})[0][:len(some)])
        embs = np.concatenate(rows).reshape(len(images), -1) if images else np.zeros((0, 1), np.float32)
        return embs / np.maximum(np.linalg.norm(embs, axis=1, keepdims=True), 1e-12)

    return embed


def read(path):
    """Read boxes in MOTChallenge's format, a list of (frame, number, left, top, width, height, confidence)."""
    rows = []
    with open(path, encoding='utf-8', newline='') as file:
        for line, cells in enumerate(csv.reader(file), 1):
            try:
                numbers = [float(cell) for cell in cells[:7]]
                if len(numbers) != 7 or not np.isfinite(numbers).all():
                    raise ValueError
            except ValueError:
                raise ValueError(f'{path}, line {line}: {",".join(cells)!r} is not frame,number,left,top,width,height,'
                                 f'confidence.') from None
            rows.append((int(numbers[0]), int(numbers[1]), *numbers[2:]))
    return rows


def write(path, tracks):
    """Write tracked boxes in MOTChallenge's format."""
    with open(path, 'w', encoding='utf-8') as file:
        for frame, number, left, top, width, height, confidence in tracks:
            file.write(f'{frame},{number},{left:.2f},{top:.2f},{width:.2f},{height:.2f},{confidence:.4f},-1,-1,-1\n')


# --- Scores -----------------------------------------------------------------------------------------------------------

def score(tracks, true):
    """Return the scores of tracks against true tracks, both lists of boxes as `read` returns them.

    identity switches: true boxes whose track is another one than at the previous found box of their person.
    IDF1 (Ristani et al. 2016): F1 score of boxes when each person is one track, assigned to have the most in common.
    association accuracy: AssA of HOTA (Luiten et al. 2021, section 5) at an IoU of 0.5.
    """
    overlapping, pairs = compare(tracks, true)
    last, switches = {}, 0
    for person, number in pairs:
        switches += last.get(person, number) != number
        last[person] = number
    people, numbers = (collections.Counter(box[1] for box in boxes) for boxes in (true, tracks))
    rows, columns = ({name: place for place, name in enumerate(names)} for names in (people, numbers))
    shared = np.zeros((len(people), len(numbers)))
    for (person, number), boxes in collections.Counter(overlapping).items():
        shared[rows[person], columns[number]] = boxes
    identified = shared[linear_sum_assignment(-shared)].sum()
    association = [boxes * boxes / (people[person] + numbers[number] - boxes)
                   for (person, number), boxes in collections.Counter(pairs).items()]
    return {'identity switches': switches, 'IDF1': 2 * identified / (len(tracks) + len(true)),
            'association accuracy': sum(association) / max(len(pairs), 1)}


def compare(tracks, true):
    """Compare tracked with true boxes frame by frame.

    Returns: (person, track) of all boxes that overlap by SAME_PLACE or more; and of those that are assigned to each
        other, as many as possible and then the largest overlap. Both are lists in the order of time.
    """
    overlapping, pairs = [], []
    for frame in sorted({box[0] for box in true}):
        frame_true, frame_tracks = ([box for box in boxes if box[0] == frame] for boxes in (true, tracks))
        if frame_true and frame_tracks:
            overlap = iou(np.array([box[2:6] for box in frame_true]), np.array([box[2:6] for box in frame_tracks]))
            close = np.argwhere(overlap >= SAME_PLACE)
            overlapping += [(frame_true[row][1], frame_tracks[column][1]) for row, column in close]
            gain = np.where(overlap >= SAME_PLACE, overlap + overlap.size, 0)
            pairs += [(frame_true[row][1], frame_tracks[column][1]) for row, column in zip(*linear_sum_assignment(-gain))
                      if gain[row, column]]
    return overlapping, pairs


def iou(first, second):
    """Return the intersection over union of boxes [N, 4] and [M, 4], float64 [N, M]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = first[:, 2:].prod(axis=1)[:, None] + second[:, 2:].prod(axis=1)
    return common / np.maximum(areas - common, 1e-12)


if __name__ == '__main__':
    main()

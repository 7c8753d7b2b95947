"""Copies of pictures: the same bytes, the same picture saved again, and pictures of the same moment.

A perceptual hash finds pictures that are nearly equal, and a small grey copy of each confirms that one picture was saved
again. Measured on Market-1501: grey copies of a picture saved again (JPEG of quality 50 or 90, half or double size, PNG)
differ by at most 2.2 grey levels, 1% of the nearly equal boxes of different moments by less than 4.9.
"""
import collections
import contextlib
import functools
import io
import itertools
import multiprocessing.pool
import os
import typing

import numpy as np

from tripletreid.errors import some, warn
from tripletreid.image_root import THREADS, image_path, image_root_of_sets
from tripletreid.pictures import ORIENTATION
from tripletreid.provenance import file_hash

SIMILAR_BITS = 6  # Out of 64. In half of Market-1501's test set, 5% of the queries have such an image, no training image.
SAVED_AGAIN_LEVELS = 3  # Root mean square of the differences of two grey copies, in levels of 0 to 255.
SAVED_AGAIN_CONTRAST = 1 / 8  # The same as a fraction of the contrast, for pages of a form.
GREY_SIDE = 16
SMALLEST_SIDE = 32  # In smaller pictures, such as scanned digits, a hash of one motif is like a hash of another.
LARGEST_REDUCED = 512  # Pixels; larger pictures are reduced before hashing, to save time.
LEAST_CONTRAST = 2  # Standard deviation of grey levels; the hash of a flatter picture is noise.
MOST_ALIKE = 20_000  # Pictures with 32 bits in common that are compared with each other.


class Print(typing.NamedTuple):
    """The fingerprint by which pictures are compared.

    hash: its perceptual hash, 8 bytes.
    grey: its grey copy of GREY_SIDE x GREY_SIDE pixels, bytes.
    """
    hash: bytes
    grey: bytes


def prints(content, pixels):
    """Compute the fingerprints of a picture.

    Args:
        content: bytes of the file.
        pixels: uint8 [H, W, 3], which the file holds.

    Returns: a list of `Print`: none for a picture without contrast; two for a picture that EXIF marks as turned, since
        its copies may be upright or not.
    """
    import imagehash
    from PIL import Image, ImageOps
    image = Image.fromarray(pixels).convert('L')
    factor = min(image.size) // LARGEST_REDUCED
    if factor > 1:
        image = image.reduce(factor)
    if np.std(image) < LEAST_CONTRAST:
        return []
    images = [image]
    with contextlib.suppress(Exception), Image.open(io.BytesIO(content), formats=['JPEG']) as original:
        if original.getexif().get(ORIENTATION, 1) != 1:
            image.getexif()[ORIENTATION] = original.getexif()[ORIENTATION]
            images.append(ImageOps.exif_transpose(image))
    return [Print(np.packbits(imagehash.phash(each).hash).tobytes(),
                  each.resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX).tobytes()) for each in images]


def show_one_picture(first, second):
    """Return whether two pictures, each a list of `Print`, are one picture that was saved again."""
    for one, other in itertools.product(first, second):
        greys = [np.frombuffer(each.grey, np.uint8).astype(np.float32) for each in (one, other)]
        difference = np.sqrt(np.mean(np.square(greys[0] - greys[1])))
        if difference <= min(SAVED_AGAIN_LEVELS, SAVED_AGAIN_CONTRAST * greys[0].std()):
            return True
    return False


def similar_pairs(hashes, most_bits):
    """Find the pairs of hashes that differ in few bits.

    Hashes with at most `most_bits` different bits have one of `most_bits + 1` bands in common; only those are compared.

    Args:
        hashes: list of bytes [N], all of one length. Equal ones are one hash; give each once.
        most_bits: of this number of bits.

    Returns: int64 [pairs, 2], indices with first < second.
    """
    if len(hashes) < 2:
        return np.zeros((0, 2), np.int64)
    rows = np.frombuffer(b''.join(hashes), np.uint8).reshape(len(hashes), -1)
    words = rows.view(np.uint64)
    bits = np.unpackbits(rows, axis=1)
    found, skipped = set(), 0
    for band in np.array_split(np.arange(bits.shape[1]), most_bits + 1):
        packed = np.packbits(bits[:, band], axis=1)
        order = np.lexsort(packed.T)
        is_new = np.any(packed[order[1:]] != packed[order[:-1]], axis=1)
        ends = np.concatenate([[0], np.flatnonzero(is_new) + 1, [len(order)]])
        sizes = np.diff(ends)
        for number in np.flatnonzero(sizes > 1):
            if sizes[number] > MOST_ALIKE:
                skipped += sizes[number]
            else:
                found.update(_pairs_of_group(order[ends[number]:ends[number + 1]], words, most_bits))
    if skipped:
        warn(f'{skipped} pictures have too much in common to be compared with each other, e.g. since they are empty.')
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _pairs_of_group(group, words, most_bits):
    """Yield the pairs (first, second) of a group of indices whose words differ in at most `most_bits` bits."""
    for place, first in enumerate(group[:-1]):
        others = group[place + 1:]
        differences = np.bitwise_count(words[others] ^ words[first]).sum(axis=1)
        for second in others[differences <= most_bits]:
            yield (min(first, second), max(first, second))


def similar_pictures(prints_key_prints):
    """Find nearly equal pictures, by their hashes.

    Args:
        prints_key_prints: {key: result of `prints` for a picture}.

    Returns: {key: set of the keys of similar pictures}, which has only keys with similar pictures.
    """
    keys_of_hash = collections.defaultdict(set)
    for key, key_prints in prints_key_prints.items():
        for each in key_prints:
            keys_of_hash[each.hash].add(key)
    hashes = list(keys_of_hash)
    pairs = [(each, each) for each in hashes if len(keys_of_hash[each]) > 1]
    pairs += [(hashes[first], hashes[second]) for first, second in similar_pairs(hashes, SIMILAR_BITS).tolist()]
    similar = collections.defaultdict(set)
    for first, second in pairs:
        for one, other in ((first, second), (second, first)):
            for key in keys_of_hash[one]:
                similar[key] |= keys_of_hash[other] - {key}
    return {key: keys for key, keys in similar.items() if keys}


def warn_of_shared_images(dataset, image_root):
    """Warn of images with the same bytes in several sets of a joined dataset.

    Args:
        dataset: `Dataset`; without `sets`, the first folder of a path is its set.
        image_root: as `image_root_of_sets` takes it.
    """
    image_root = image_root_of_sets(dataset, image_root)
    # Only files of the same size can be copies.
    same_size = _shared_by_sets(dataset.fids, image_root, os.path.getsize)
    copies = _shared_by_sets(same_size, image_root, file_hash)
    if copies:
        warn(f'Images with the same content are in several sets: {some(copies)}. As images of two identities they teach '
             f'that a picture differs from itself.')


def _shared_by_sets(fids, image_root, look):
    """Return the sorted file ids for which `look`, a function of a path, returns the same as for one of another set."""
    import tqdm
    fids_of_answer = collections.defaultdict(list)
    with multiprocessing.pool.ThreadPool(THREADS) as pool:
        answers = pool.imap(functools.partial(_look_at, look, image_root), fids, chunksize=16)
        for fid, answer in zip(fids, tqdm.tqdm(answers, 'Comparing images', len(fids), delay=2, leave=False)):
            fids_of_answer[answer].append(fid)
    return sorted(fid for same in fids_of_answer.values() if len({each.partition('/')[0] for each in same}) > 1
                  for fid in same)


def _look_at(look, image_root, fid):
    return look(image_path(image_root, fid))

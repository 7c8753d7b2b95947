"""Your own images: a folder with one sub-folder per identity, the images (.jpg, .jpeg, .png, .gif) anywhere below it.

Without options all of them train. With --val_fraction that share of the identities is held out: they are seen by the
query and the test set only. With --query_per_identity alone all identities are, for evaluating a given model.

With --convert FOLDER pictures of other formats (.webp, .bmp, .tif and more) take part as well. JPEG copies of all of
them, turned as EXIF says and on white where they are transparent, go into that new folder, and the csv files name
those.
"""
import collections
import os

from data import _convert, _files
from reid.errors import InputError, some, warn

EXCLUDER = 'diagonal'
TOTALS = {'train': {}, 'query': {}, 'test': {}}
SUFFIXES = ('.jpg', '.jpeg', '.png', '.gif')
ANIMATED = 'animated .gif'  # Training reads no GIF of several frames.


def add_arguments(parser):
    parser.add_argument('--val_fraction', type=float, metavar='F', help='share of the identities held out, 0 < F < 1')
    parser.add_argument('--query_per_identity', type=int, metavar='N',
                        help='held-out images of an identity that are queries (default 1); the others are the test set')
    parser.add_argument('--seed', type=int, default=0, help='of what is held out and what is a query (default 0)')
    parser.add_argument('--convert', metavar='FOLDER',
                        help='write JPEG copies of the pictures into this new folder, which is the image root then')


def splits(root, val_fraction=None, query_per_identity=None, seed=0, convert=None):
    """The rows of each subset. What is left out, and why, is a warning.

    Args:
        val_fraction: share of the identities in the query and the test set, between 0 and 1; None: none of them, or
            all of them where `query_per_identity` is given.
        query_per_identity: how many images of such an identity are queries; None: one. One image at least stays in
            the test set, so that there is something to find.
        seed: of the order in which identities are held out and images become queries.
        convert: anything but None: the images are to be converted, so that more formats are taken.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise InputError(f'--val_fraction {val_fraction} is not between 0 and 1.')
    if query_per_identity is not None and query_per_identity < 1:
        raise InputError(f'--query_per_identity {query_per_identity} is less than 1.')
    images = images_of_identities(root, convert)
    if val_fraction is not None:
        if len(images) == 1:
            raise InputError(f'{root} has one identity only, which cannot be both trained on and held out.')
        held_out = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    else:
        held_out = len(images) if query_per_identity else 0
    identities = _files.shuffled(images, seed)
    subsets = {'train': [(pid, fid) for pid in identities[held_out:] for fid in images[pid]], 'query': [], 'test': []}
    wanted = query_per_identity or 1
    for pid in identities[:held_out]:
        rows = [(pid, fid) for fid in _files.shuffled(images[pid], seed)]
        queries = min(wanted, len(rows) - 1)
        subsets['query'] += rows[:queries]
        subsets['test'] += rows[queries:]
    # That some identities have few images is in the data; a number of queries that none of them has is a mistake.
    short = [pid for pid in identities[:held_out] if len(images[pid]) <= wanted]
    if short and len(short) == held_out:
        most = max(len(images[pid]) for pid in short)
        raise InputError(f'No held-out identity has {wanted + 1} images, {wanted} to search with and one to be found, '
                         f'but {most} at most; lower --query_per_identity or add images.')
    if short:
        warn(f'Of {held_out} held-out identities these have fewer than {wanted + 1} images, {wanted} to search with '
             f'and one to be found, and so fewer queries: {some(short)}.')
    return {subset: rows for subset, rows in subsets.items() if rows}


def images_of_identities(root, convert=False):
    """The file ids of each identity: a dict of pid to a list. What else lies in `root` is left out with a warning.

    Hidden files, and those in hidden folders, are no images, and nothing is said of them.

    Args:
        convert: take the formats that can be converted, not only those that training reads.

    Raises:
        InputError: no such folder, or no sub-folder of it with images in it.
    """
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    endings = _convert.SUFFIXES if convert else SUFFIXES
    kinds_of_pictures = {*_convert.SUFFIXES, ANIMATED}
    taken = kinds_of_pictures if convert else {*SUFFIXES}
    images, beside, left_out, links = {}, [], collections.Counter(), []
    for name in shown(os.listdir(root)):
        if not os.path.isdir(os.path.join(root, name)):
            beside += [name] if ending(name) in kinds_of_pictures else []
            continue
        images[name] = []
        for folder, folders, files in os.walk(os.path.join(root, name), onerror=reraise):
            folders[:] = shown(folders)
            links += [path for path in (os.path.join(folder, each) for each in folders) if os.path.islink(path)]
            for path in (os.path.join(folder, each) for each in shown(files)):
                kind = ANIMATED if ending(path) == '.gif' and is_animated(path) else ending(path)
                if kind in taken:
                    images[name].append(os.path.relpath(path, root))
                else:
                    left_out[kind] += 1

    if beside:
        warn(f'Images beside the folders of the identities are left out: {some(beside)}; move each into the folder of '
             f'its identity.')
    if left_out:
        numbers = ', '.join(f'{number} {kind}' for kind, number in sorted(left_out.items()))
        convertible = sorted(set(left_out) & kinds_of_pictures)
        advice = f'; --convert FOLDER takes {", ".join(convertible)} as well' if convertible else ''
        warn(f'Files that are not {", ".join(endings)} are left out: {numbers}{advice}.')
    if links:
        warn(f'Folders that are links are left out: {some(links)}.')
    empty = [pid for pid in images if not images[pid]]
    if len(empty) == len(images):
        raise InputError(f'There is no sub-folder with images ({", ".join(endings)}) in {root}.')
    if empty:
        warn(f'Folders without images are left out: {some(empty)}.')
    return {pid: fids for pid, fids in images.items() if fids}


def shown(names):
    """The names that are not hidden, sorted."""
    return sorted(name for name in names if not name.startswith('.'))


def ending(name):
    """'.jpg' of 'a/1.JPG'."""
    return os.path.splitext(name)[1].lower() or 'without an ending'


def is_animated(path):
    """Whether a GIF file has several frames. A broken one has none to be told of here."""
    from PIL import Image
    if not os.path.isfile(path):
        return False
    try:
        with Image.open(path, formats=['GIF']) as image:
            return image.is_animated
    except Exception:  # Pillow raises whatever a damaged byte leads it to.
        return False


def reraise(error):
    raise error

"""Which images a gallery has: those in a folder, or of a csv file, with what tells that a file was changed."""
import collections
import dataclasses
import os

import numpy as np

from tripletreid.dataset import load_dataset
from tripletreid.errors import InputError, some
from tripletreid.image_root import check_files, image_path, is_inside

SUFFIXES = ('.jpg', '.jpeg', '.png', '.gif')


@dataclasses.dataclass
class ImageFiles:
    """The images of a gallery, in its order.

    path: the folder or the csv file, as an absolute path without links.
    root: folder that the file ids are relative to, likewise.
    fids: file ids, list of str [N].
    stamps: size in bytes and time of the last change in nanoseconds of each file, int64 [N, 2].
    """
    path: str
    root: str
    fids: list
    stamps: np.ndarray

    def __len__(self):
        return len(self.fids)


def in_folder(folder, allow_outside_root=False):
    """The `ImageFiles` in a folder and its sub-folders, sorted by their names, and what was left out.

    Hidden files and folders are none. Links to folders are not followed, and links to files only inside of the folder.

    Args:
        folder: its path.
        allow_outside_root: also take links to files elsewhere.

    Returns: `ImageFiles`, and a list of sentences.

    Raises:
        InputError: there is no image in it.
        OSError: a folder that cannot be listed.
    """
    root = os.path.realpath(folder)
    stamps, endings = {}, collections.Counter()
    left_out = collections.defaultdict(list)
    waiting = ['']
    while waiting:
        inside = waiting.pop()
        try:
            entries = os.scandir(os.path.join(root, inside))
        except FileNotFoundError:
            if not inside:
                raise
            continue  # It was removed since it was listed.
        with entries:
            for entry in entries:
                fid = os.path.join(inside, entry.name)
                if entry.name.startswith('.'):
                    continue
                if entry.is_dir():
                    if entry.is_symlink():
                        left_out['Folders that are links are'].append(fid)
                    else:
                        waiting.append(fid)
                    continue
                ending = os.path.splitext(fid)[1].lower()
                if ending not in SUFFIXES:
                    endings[ending or 'without an ending'] += 1
                elif not _is_utf8(fid):
                    left_out['Files whose names are not UTF-8 are'].append(ascii(fid))
                elif entry.is_symlink() and not (allow_outside_root or is_inside(entry.path, root)):
                    left_out['Links that lead out of the folder are'].append(fid)
                elif stamp := _stamp(entry.path):
                    stamps[fid] = stamp
    sentences = [f'{what} left out: {some(fids)}.' for what, fids in sorted(left_out.items())]
    if endings:
        numbers = ', '.join(f'{number} {ending}' for ending, number in sorted(endings.items()))
        sentences.append(f'Files that are not {", ".join(SUFFIXES)} are left out: {numbers}.')
    if not stamps:
        raise InputError(' '.join([f'There is no image ({", ".join(SUFFIXES)}) in the folder {folder}.', *sentences]))
    fids = sorted(stamps)
    return ImageFiles(root, root, fids, np.array([stamps[fid] for fid in fids], np.int64)), sentences


def in_dataset(path, image_root, allow_outside_root=False):
    """The `ImageFiles` of a csv file, in the order of its lines.

    Raises:
        InputError: as `load_dataset` and `check_files`.
    """
    dataset = load_dataset(path)
    check_files(dataset, image_root, allow_outside_root)
    fids = dataset.fids.tolist()
    stamps = [_stamp(image_path(image_root, fid)) or (0, 0) for fid in fids]
    return ImageFiles(os.path.realpath(path), os.path.realpath(image_root), fids, np.array(stamps, np.int64))


def _stamp(path):
    """Size and time of a file; None where it went away meanwhile, or is a pipe or a device."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_size, state.st_mtime_ns) if os.path.isfile(path) else None


def _is_utf8(name):
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

"""The image files of a gallery, in a folder or of a csv file, with their sizes and times, by which changes are noticed."""
import collections
import dataclasses
import errno
import os
import stat

import numpy as np

from tripletreid.dataset import load_dataset, warn_of_lookalikes
from tripletreid.errors import InputError, printable, some
from tripletreid.image_root import check_files, image_path, is_inside, time_of_change

SUFFIXES = ('.jpg', '.jpeg', '.png', '.gif')
OTHER_ENDING = 'ending '


@dataclasses.dataclass
class ImageFiles:
    """The image files of a gallery, in its order.

    path: the folder or the csv file, as an absolute path without links.
    root: folder that the file ids are relative to, as an absolute path without links.
    fids: file ids, list of str [N].
    stamps: size in bytes and time of the last change in nanoseconds of each file, int64 [N, 2].
    away: {path relative to `root`: reason} of files and folders that cannot be read now.
    pids: {file id: identity}, None where there are no identities.
    """
    path: str
    root: str
    fids: list
    stamps: np.ndarray
    away: dict = dataclasses.field(default_factory=dict)
    pids: dict | None = None

    def __len__(self):
        return len(self.fids)

    def is_away(self, fid):
        """Check whether an image that is not listed is away for now only, alone or with its folder."""
        return any(fid == path or fid.startswith(f'{path}/') for path in self.away)


def in_folder(folder, allow_outside_root=False):
    """Return the `ImageFiles` in a folder and its sub-folders, sorted by their names, and sentences about the rest.

    Hidden files and folders are ignored. Links to folders are not followed, and links to files only inside the folder.

    Args:
        folder: its path.
        allow_outside_root: also take links to files elsewhere.

    Returns: `ImageFiles`, and a list of sentences.

    Raises:
        InputError: there is no image in it.
        OSError: the folder itself cannot be listed.
    """
    root = os.path.realpath(folder)
    found, skipped, away = {}, collections.defaultdict(list), {}
    waiting = ['']
    while waiting:
        inside = waiting.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, inside)), key=lambda entry: entry.name)
        except OSError as error:
            if not inside:
                raise
            if not isinstance(error, FileNotFoundError):  # A folder may be removed after it was listed.
                away[inside] = error.strerror
            continue
        for entry in entries:
            fid = os.path.join(inside, entry.name)
            if entry.name.startswith('.'):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(fid)
                    continue
                reason = _why_skipped(entry, root, allow_outside_root)
                if reason:
                    skipped[reason].append(fid)
                else:
                    found[fid] = _stamp(os.stat(entry.path))
            except FileNotFoundError:
                continue  # It was removed after it was listed.
            except OSError as error:
                away[fid] = error.strerror
    sentences = _sentences(skipped, away)
    if not found:
        raise InputError(' '.join([f'There is no image ({", ".join(SUFFIXES)}) in the folder {folder}.', *sentences]))
    fids = sorted(found)
    return ImageFiles(root, root, fids, np.array([found[fid] for fid in fids], np.int64), away), sentences


def _why_skipped(entry, root, allow_outside_root):
    """Return which kind of file is skipped, in words, or None for an image; OSError where that cannot be found out."""
    if entry.is_symlink():
        try:
            target = os.stat(entry.path)
        except FileNotFoundError:
            return 'Links to files that do not exist'
        except OSError as error:
            if error.errno == errno.ELOOP:
                return 'Links that lead in a circle'
            raise
        if stat.S_ISDIR(target.st_mode):
            return 'Links to folders'
    if (ending := os.path.splitext(entry.name)[1].lower()) not in SUFFIXES:
        return f'{OTHER_ENDING}{ending or "without an ending"}'
    if not _is_utf8(entry.path):
        return 'Files with names that are not UTF-8'
    if not stat.S_ISREG(os.stat(entry.path).st_mode):
        return 'Pipes, sockets and devices'
    if entry.is_symlink() and not (allow_outside_root or is_inside(entry.path, root)):
        return 'Links to files outside the folder'
    return None


def _sentences(skipped, away):
    """Return sentences about skipped files, {kind: file ids}, and files that are away."""
    endings = ', '.join(f'{len(fids)} {printable(kind.removeprefix(OTHER_ENDING))}' for kind, fids in sorted(skipped.items())
                        if kind.startswith(OTHER_ENDING))
    return [*(f'{kind} are skipped: {some(fids)}.' for kind, fids in sorted(skipped.items())
              if not kind.startswith(OTHER_ENDING)),
            *([f'Files that are not {", ".join(SUFFIXES)} are skipped: {endings}.'] if endings else []),
            *([f'{some(away)} cannot be read now ({", ".join(sorted(set(away.values())))}) and will be tried again by '
               f'the next search.'] if away else [])]


def in_dataset(path, image_root, allow_outside_root=False):
    """Return the `ImageFiles` of a csv file, in the order of its lines.

    Raises:
        InputError: as `load_dataset` and `check_files`.
    """
    dataset = load_dataset(path)
    warn_of_lookalikes(dataset)
    check_files(dataset, image_root, allow_outside_root)
    fids = dataset.fids.tolist()
    stamps, away = [], {}
    for fid in fids:
        try:
            stamps.append(_stamp(os.stat(image_path(image_root, fid))))
        except OSError as error:
            stamps.append((0, 0))
            away[fid] = error.strerror
    return ImageFiles(os.path.realpath(path), os.path.realpath(image_root), fids, np.array(stamps, np.int64), away,
                      dict(zip(fids, dataset.pids.tolist())))


def _stamp(state):
    return state.st_size, time_of_change(state)


def _is_utf8(name):
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

"""The files below an image root: paths of images, missing images, images outside of the root, links."""
import collections
import multiprocessing.pool
import os

import numpy as np

from tripletreid.dataset import Dataset
from tripletreid.errors import InputError

THREADS = 16  # A network file system answers slowly.


def image_root_of_sets(dataset, image_root):
    """Return the `image_root` of `image_path` for a dataset of one csv file or a `joined` one.

    Args:
        dataset: `Dataset`.
        image_root: a folder; for a joined dataset one for all sets, or a list with one for each.
    """
    if not dataset.sets:
        return image_root
    roots = image_root if isinstance(image_root, list) else [image_root] * len(dataset.sets)
    return dict(zip(dataset.sets, roots, strict=True))


def image_path(image_root, fid):
    """Return the path of an image file: the one place that turns a file id into a path.

    Args:
        image_root: a folder; or, for joined datasets, {name of a set: its folder}.
        fid: the file id.
    """
    if isinstance(image_root, dict):
        name, _, fid = fid.partition('/')
        image_root = image_root[name]
    return os.path.join(image_root, fid)


def time_of_change(status):
    """Return when a file last changed, in nanoseconds, from its `os.stat`.

    A copy that keeps times (`cp -p`, `rsync -t`, a zip file) or a rename can put another picture of the same size and
    modification time under a name; the inode's time of change shows that.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns)


def file_problems(fids, image_root):
    """Check each image file: return a list of 'missing', 'outside' (of the image root) or None.

    A path leads outside by `../`, by being absolute, or by a link. Folders are listed, and only files that no listing
    contains are checked one by one; both in parallel, with a progress bar after two seconds.
    """
    import tqdm
    real_root = os.path.realpath(image_root)
    folders = sorted({os.path.dirname(fid) for fid in fids})
    with multiprocessing.pool.ThreadPool(THREADS) as pool:
        listings = pool.imap(lambda folder: _plain_files(image_path(image_root, folder), real_root), folders)
        listings = tqdm.tqdm(listings, 'Listing folders', len(folders), delay=2, leave=False)
        listed = dict(zip(folders, listings))
        others = [fid for fid in fids if os.path.basename(fid) not in listed[os.path.dirname(fid)]]
        answers = pool.imap(lambda fid: _problem(image_path(image_root, fid), real_root), others, chunksize=256)
        answers = tqdm.tqdm(answers, 'Checking files', len(others), delay=2, leave=False)
        problems = dict(zip(others, answers))
    return [problems.get(fid) for fid in fids]


def _plain_files(folder, real_root):
    """Return the names of the files, except links, in a folder inside of the root; none if it cannot be listed."""
    if not is_inside(folder, real_root):
        return set()
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError:
        return set()


def _problem(path, real_root):
    """Check a file that no listing contains: a link, a file under another spelling of its name, or a missing one."""
    if not os.path.isfile(path):
        return 'missing'
    return None if is_inside(path, real_root) else 'outside'


def is_inside(path, real_root):
    """Return whether a path leads into a folder (given without links) after following links."""
    return os.path.join(os.path.realpath(path), '').startswith(os.path.join(real_root, ''))


def paths_of_one_file(fids, image_root):
    """Find files that several paths lead to, by hard or symbolic links.

    Args:
        fids: file ids of existing files.
        image_root: as `image_path` takes it.

    Returns: {file id: the first of the file ids of the same file}, only for files with several file ids.
    """
    fids = list(dict.fromkeys(fids))
    with multiprocessing.pool.ThreadPool(THREADS) as pool:
        stats = pool.map(lambda fid: os.stat(image_path(image_root, fid)), fids, chunksize=256)
    fids_of_file = collections.defaultdict(list)
    for fid, stat in zip(fids, stats):
        fids_of_file[stat.st_dev, stat.st_ino].append(fid)
    return {fid: paths[0] for paths in fids_of_file.values() if len(paths) > 1 for fid in paths}


class OwnFileExcluder:
    """An excluder that also ignores the query's own file in the gallery where a link gives it another path."""

    def __init__(self, excluder, first_path):
        """
        Args:
            excluder: as `exclusion.load` returns it.
            first_path: result of `paths_of_one_file` for the images of queries and gallery.
        """
        self.excluder = excluder
        self.first_path = first_path

    def __call__(self, gallery_fids):
        return _GalleryExcluder(self.excluder(gallery_fids), self.first_path, gallery_fids)


class _GalleryExcluder:
    """An `OwnFileExcluder` for one gallery."""

    def __init__(self, excluder, first_path, gallery_fids):
        self.excluder, self.first_path = excluder, first_path
        self.gallery_fids = self.first_paths(gallery_fids)
        self.has_links = np.flatnonzero(self.gallery_fids != '')
        if hasattr(excluder, 'junk'):
            self.junk = excluder.junk

    def first_paths(self, fids):
        return np.array([self.first_path.get(fid, '') for fid in fids], object)

    def __call__(self, query_fids):
        ignored = self.excluder(query_fids)
        query_fids = self.first_paths(query_fids)
        ignored[:, self.has_links] |= query_fids[:, None] == self.gallery_fids[self.has_links]
        return ignored


def check_files(dataset, image_root, allow_outside_root=False):
    """Check that every image of the dataset exists inside the image root (`../`, absolute paths, links).

    Args:
        dataset: `Dataset`.
        image_root: as `image_root_of_sets` takes it.
        allow_outside_root: whether images may lie outside.

    Raises:
        InputError: no such image root, or files that are missing or outside (their count and the first few names).
    """
    for name, root in image_root_of_sets(dataset, image_root).items() if dataset.sets else ():
        rows = [row for row, fid in enumerate(dataset.fids) if fid.startswith(f'{name}/')]
        fids = np.array([fid[len(name) + 1:] for fid in dataset.fids[rows]], object)
        check_files(Dataset(f'the set {name}', dataset.pids[rows], fids), root, allow_outside_root)
    if dataset.sets:
        return
    if not image_root or not os.path.isdir(image_root):
        raise InputError(f'There is no image root {image_root}.')
    problems = {'missing': [], 'outside': [], None: []}
    for fid, problem in zip(dataset.fids, file_problems(dataset.fids, image_root)):
        problems[problem].append(fid)
    if problems['outside'] and not allow_outside_root:
        raise InputError(f'{len(problems["outside"])} of {len(dataset)} images of {dataset.path} lie outside of the '
                         f'image root {image_root}: {_some(problems["outside"])}. To read them all the same add '
                         f'--allow_outside_root.')
    if problems['missing']:
        missing = problems['missing']
        raise InputError(f'{len(missing)} of {len(dataset)} images of {dataset.path} are not in {image_root}: '
                         f'{_some(missing)}.{hint_of_missing(dataset.fids, missing)}')


def hint_of_missing(fids, missing):
    """Guess why images are missing: return a sentence with a blank before it, or an empty string.

    Args:
        fids: the file ids of a csv file, in the order of its lines.
        missing: the missing ones among them.
    """
    if any('\\' in fid for fid in missing):
        return r' Paths in the csv file are written with /, not with \.'
    with_blanks = [fid for fid in missing if fid != fid.strip()]
    if with_blanks:
        return f' The path {with_blanks[0]!r} begins or ends with a blank, which counts as a part of the name.'
    endings = [os.path.splitext(fid)[1] for fid in fids[:2]]
    if fids[0] in missing and len(endings) == 2 and endings[1] and not endings[0]:
        return f' Its first line, with {fids[0]!r} for a path, looks like a header, which the csv file should not have.'
    return ''


def _some(names, limit=3):
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '')

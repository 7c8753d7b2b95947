"""Your own images: a folder with one sub-folder per identity, the images (.jpg, .jpeg, .png) anywhere below it.

Without options all of them train. With --val_fraction that share of the identities is held out: they are seen by the
query and the test set only. With --query_per_identity alone all identities are, for evaluating a given model.
"""
import pathlib

from data import _files
from reid.errors import InputError

EXCLUDER = 'diagonal'
TOTALS = {}
SUFFIXES = ('.jpg', '.jpeg', '.png')


def add_arguments(parser):
    parser.add_argument('--val_fraction', type=float, metavar='F', help='share of the identities held out, 0 < F < 1')
    parser.add_argument('--query_per_identity', type=int, metavar='N',
                        help='held-out images of an identity that are queries (default 1); the others are the test set')
    parser.add_argument('--seed', type=int, default=0, help='of what is held out and what is a query (default 0)')


def splits(root, val_fraction=None, query_per_identity=None, seed=0):
    """The rows of each subset.

    Args:
        val_fraction: share of the identities in the query and the test set, between 0 and 1; None: none of them, or
            all of them where `query_per_identity` is given.
        query_per_identity: how many images of such an identity are queries; None: one. One image at least stays in
            the test set, so that there is something to find.
        seed: of the order in which identities are held out and images become queries.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise InputError(f'--val_fraction {val_fraction} is not between 0 and 1.')
    if query_per_identity is not None and query_per_identity < 1:
        raise InputError(f'--query_per_identity {query_per_identity} is less than 1.')
    images = images_of_identities(root)
    if val_fraction is not None:
        if len(images) == 1:
            raise InputError(f'{root} has one identity only, which cannot be both trained on and held out.')
        held_out = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    else:
        held_out = len(images) if query_per_identity else 0
    identities = _files.shuffled(images, seed)
    subsets = {'train': [(pid, fid) for pid in identities[held_out:] for fid in images[pid]], 'query': [], 'test': []}
    for pid in identities[:held_out]:
        rows = [(pid, fid) for fid in _files.shuffled(images[pid], seed)]
        queries = min(query_per_identity or 1, len(rows) - 1)
        subsets['query'] += rows[:queries]
        subsets['test'] += rows[queries:]
    return {subset: rows for subset, rows in subsets.items() if rows}


def images_of_identities(root):
    """The file ids of each identity: a dict of pid to a list. Hidden files, and those in hidden folders, are no images.

    Raises:
        InputError: no such folder, or none with images in it.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise InputError(f'There is no folder {root}.')
    images = {}
    for folder in sorted(root.glob('[!.]*')):
        found = (path.relative_to(root) for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
        shown = [path.as_posix() for path in found if not any(part.startswith('.') for part in path.parts)]
        if shown:
            images[folder.name] = shown
    if not images:
        raise InputError(f'There is no sub-folder with images ({", ".join(SUFFIXES)}) in {root}.')
    return images

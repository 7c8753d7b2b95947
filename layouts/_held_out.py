"""Hold people out of the training set of a dataset with cameras, to choose a checkpoint by."""
from layouts import _files
from tripletreid import exclusion
from tripletreid.argument_types import inner_fraction
from tripletreid.errors import InputError

TOTALS = {'val_query': {}, 'val_test': {}}


def add_arguments(parser):
    parser.add_argument('--val_fraction', type=inner_fraction, metavar='F',
                        help='fraction of the people of the training set that are held out to choose a checkpoint by, '
                             '0 < F < 1: val_query and val_test (default: none)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of these people and of their queries '
                        '(default: 0)')


def divide(train, excluder, val_fraction, seed):
    """Divide the rows of a training set into train, val_query and val_test, {subset: rows}; None holds nobody out.

    As in Market-1501, a held-out person seen by several cameras has one query in each of them. A camera with one image of
    the person has no query, so that each query has images from other cameras to find.

    Args:
        train: rows (pid, file id).
        excluder: name of the excluder that reads the camera off a file id.
        val_fraction: fraction of the people, between 0 and 1, or None.
        seed: seed of the choice of people and of queries.

    Raises:
        InputError: fewer than two people, or no held-out person has a query.
    """
    if val_fraction is None:
        return {'train': train}
    people = _files.shuffled({pid for pid, _ in train}, seed)
    if len(people) < 2:
        raise InputError(f'--val_fraction needs two people or more in the training set; there are {len(people)}.')
    held_out = set(people[:min(max(1, round(val_fraction * len(people))), len(people) - 1)])
    rows = [row for row in train if row[0] in held_out]
    fids = _files.shuffled((fid for _, fid in rows), seed)
    # {person: {camera: file ids}}
    images = {}
    for fid, (pid, cid) in zip(fids, exclusion.load(excluder)(fids).ids(fids)):
        images.setdefault(pid, {}).setdefault(cid, []).append(fid)
    queries = {own[0] for cameras in images.values() if len(cameras) > 1 for own in cameras.values() if len(own) > 1}
    if not queries:
        raise InputError(f'None of the {len(held_out)} people that --val_fraction holds out is seen by two cameras with two '
                         f'images in one of them, so there is no query: hold out more people, or others by --seed.')
    return {
        'train': [row for row in train if row[0] not in held_out],
        'val_query': [row for row in rows if row[1] in queries],
        'val_test': [row for row in rows if row[1] not in queries],
    }

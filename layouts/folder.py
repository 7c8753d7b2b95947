"""Your own images: a folder with one sub-folder per identity, the images (.jpg, .jpeg, .png, .gif) anywhere below it.

Without options all identities train. With --val_fraction that fraction of the identities is held out, in the query and
the test set only. With --test_fraction in addition there are three sets of identities: train, val_query and val_test to
choose a checkpoint by, query and test for the score to report. With --query_per_identity alone all identities are query
and test, for evaluating a given model. Identities with one image are in the test set only.

Folders train, val, test, query or gallery in place of identities are taken as the split that they are.

With --camera_folders or --camera_pattern each query has a match from another camera; with --sequence_pattern or
--sequence_gap no sequence of frames is divided among query and test. The --excluder that goes with it is printed.

With --convert FOLDER pictures of other formats (.webp, .heic, .tif and more) take part as well. JPEG copies of all of
them, turned as EXIF says and on white where they are transparent, go into that new folder, and the csv files name those.
"""
import argparse
import dataclasses
import functools
import itertools
import typing

from layouts import _files, _identities, _moments
from tripletreid.argument_types import inner_fraction, non_negative_float, positive_int, side
from tripletreid.errors import InputError, some, warn

EXCLUDER = 'diagonal'
TOTALS = {subset: {} for subset in ('train', 'val_query', 'val_test', 'query', 'test')}
FEW_IDENTITIES = 5


def add_arguments(parser):
    parser.add_argument('--val_fraction', type=inner_fraction, metavar='F',
                        help='fraction of the identities held out, 0 < F < 1')
    parser.add_argument('--test_fraction', type=inner_fraction, metavar='F', needs='--val_fraction',
                        help='fraction of the identities held out in addition, for the score to report')
    parser.add_argument('--query_per_identity', type=positive_int, metavar='N',
                        help='held-out images of an identity that are queries (default: 1); the others are the test set')
    parser.add_argument('--seed', type=int, default=0,
                        help='seed of the choice of held-out identities and queries (default: 0)')
    parser.add_argument('--depth', type=positive_int, default=1, metavar='N',
                        help='number of nested folders that name an identity: 2 for Apple/Golden/1.jpg (default: 1)')
    parser.add_argument('--no_split_folders', action='store_true',
                        help='folders called train, val, test, query and gallery are identities as well')
    parser.add_argument('--camera_folders', action='store_true',
                        help='the folders in the folder of an identity are cameras: IDENTITY/CAMERA/…')
    parser.add_argument('--camera_pattern', metavar='REGEX',
                        help='searched in IDENTITY/…/NAME, with a group (?P<cid>…) that is the camera')
    parser.add_argument('--sequence_pattern', metavar='REGEX',
                        help='searched in IDENTITY/…/NAME, with a group (?P<sid>…) that is the sequence, such as a video')
    parser.add_argument('--sequence_gap', type=non_negative_float, metavar='SECONDS',
                        help='images of an identity at most so long after each other, by EXIF, are one sequence')
    parser.add_argument('--convert', metavar='FOLDER',
                        help='write JPEG copies of the pictures into this new folder, which is then the image root')
    parser.add_argument('--max_side', type=side, metavar='N', needs='--convert',
                        help='reduce copies to N pixels of the longer side (default: not)')
    parser.add_argument('--bits', type=bits, default=16, metavar='N', needs='--convert',
                        help='bits that 16-bit pictures use, 9 to 16, e.g. 12 (default: 16)')


def bits(text):
    """Parse a number of bits, for argparse."""
    if text not in map(str, range(9, 17)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 9 to 16')
    return int(text)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the paths and the files below the root are read.

    depth: number of nested folders that name an identity.
    no_split_folders: take folders that are called like parts of a split as identities.
    camera_folders, camera_pattern, sequence_pattern, sequence_gap: which images belong together; at most one of them.
    convert: anything but None: the images will be converted, so that more formats are taken.
    max_side, bits: of the conversion.
    """
    depth: int = 1
    no_split_folders: bool = False
    camera_folders: bool = False
    camera_pattern: str | None = None
    sequence_pattern: str | None = None
    sequence_gap: float | None = None
    convert: str | None = None
    max_side: int | None = None
    bits: int = 16

    def parts(self, root):
        """Return the parts of a split that the folders of the root are, see `_identities.parts_of_split`."""
        return {} if self.no_split_folders else _identities.parts_of_split(root)

    def pattern(self, root, group, pattern=None):
        """Return the argument of the excluder that reads identity and `group` off a path, as `_moments.excluder_pattern`."""
        return _moments.excluder_pattern(group, pattern, self.depth, bool(self.parts(root)))

    def moment_flags(self):
        """Return the given flags about images that belong together, a list."""
        return [f'--{name}' for name in ('camera_folders', 'camera_pattern', 'sequence_pattern', 'sequence_gap')
                if getattr(self, name) not in (None, False)]


def excluder(root, val_fraction=None, test_fraction=None, query_per_identity=None, seed=0, **reading):
    """Return the excluder for the subsets that `splits` returns with these options."""
    reading = Reading(**reading)
    if reading.camera_folders or reading.camera_pattern:
        return f'regex:{reading.pattern(root, "cid", reading.camera_pattern)}'
    return f'sequence:{reading.pattern(root, "sid", reading.sequence_pattern)}' if reading.sequence_pattern else EXCLUDER


def splits(root, val_fraction=None, test_fraction=None, query_per_identity=None, seed=0, **reading):
    """Return the rows of each subset, and warn of skipped files.

    Args:
        root: the folder.
        val_fraction: fraction of the identities in the query and the test set, between 0 and 1; None: none of them, or
            all of them if `query_per_identity` is given.
        test_fraction: fraction of other identities, which are then the query and the test set, while the
            identities of `val_fraction` are val_query and val_test.
        query_per_identity: number of queries per held-out identity; None: one. One image at least stays in the test
            set, so that there is something to find.
        seed: seed of the order in which identities are held out and images become queries.
        reading: fields of `Reading`.
    """
    reading = Reading(**reading)
    for name, value in (('--val_fraction', val_fraction), ('--test_fraction', test_fraction)):
        if value is not None and not 0 < value < 1:
            raise InputError(f'{name} {value} is not between 0 and 1.')
    if query_per_identity is not None and query_per_identity < 1:
        raise InputError(f'--query_per_identity {query_per_identity} is less than 1.')
    given = reading.moment_flags()
    if len(given) > 1:
        raise InputError(f'{given[0]} and {given[1]} both say which images belong together; leave one of them out.')
    find = functools.partial(_identities.images_of_identities, root, depth=reading.depth,
                             convert=reading.convert is not None, expect_inner=bool(given))
    parts = reading.parts(root)
    divide = functools.partial(divided, wanted=query_per_identity or 1, seed=seed)
    if parts:
        if val_fraction is not None:
            raise InputError(f'{root} is divided into {", ".join(parts.values())} already, so that --val_fraction has no '
                             f'effect; leave it out, or give --no_split_folders if these are identities.')
        print(f'The folders {", ".join(parts.values())} in {root} are taken as its split (with --no_split_folders as '
              f'identities).')
        images = {part: find(folder) for part, folder in parts.items()}
        all_images = list(itertools.chain.from_iterable(images_of_part.items() for images_of_part in images.values()))
        return rows_images_of_parts(parts, images, functools.partial(divide, moments=moments_of(all_images, root, reading)))
    images = find()
    divide = functools.partial(divide, moments=moments_of(list(images.items()), root, reading))
    if len(images) < FEW_IDENTITIES:
        warn(f'{root} has {len(images)} identities only, {", ".join(images)}. If the identities are folders further down, '
             f'give --depth.')
    held_out = numbers_held_out(root, len(images), val_fraction, test_fraction, query_per_identity)
    identities = _files.shuffled(images, seed)
    subsets = {}
    start = 0
    for (query, test), number in held_out.items():
        some_images = {pid: images[pid] for pid in identities[start:start + number]}
        subsets[query], subsets[test] = divide(some_images)
        start += number
    train = [(pid, fid) for pid in identities[start:] for fid in images[pid]]
    return {subset: rows for subset, rows in {'train': train, **subsets}.items() if rows}


def numbers_held_out(root, identities, val_fraction, test_fraction, query_per_identity):
    """Return the number of identities of each pair of query and gallery, {(query, gallery): number}; the others train."""
    if val_fraction is None:
        return {('query', 'test'): identities} if query_per_identity else {}
    fractions = {('query', 'test'): val_fraction}
    if test_fraction is not None:
        fractions = {('query', 'test'): test_fraction, ('val_query', 'val_test'): val_fraction}
    if identities <= len(fractions):
        raise InputError(f'{root} has {"one identity" if identities == 1 else f"{identities} identities"} only, too few '
                         f'for {len(fractions) + 1} sets without a common identity.')
    numbers = {subsets: max(1, round(fraction * identities)) for subsets, fraction in fractions.items()}
    while sum(numbers.values()) >= identities:
        numbers[max(numbers, key=numbers.get)] -= 1
    return numbers


def rows_images_of_parts(parts, images, divide):
    """Return the rows of each subset for folders that are a split.

    Args:
        parts: {part: folder}, see `_identities.parts_of_split`.
        images: {part: {pid: file ids}}.
        divide: function of {pid: file ids} that returns the rows of queries and gallery.
    """
    rows = {part: [(pid, fid) for pid, fids in images_of_part.items() for fid in fids]
            for part, images_of_part in images.items()}
    subsets = {'train': rows.get('train', [])}
    if 'val' in parts:
        subsets['val_query'], subsets['val_test'] = divide(images['val'])
    if 'query' in parts and ('gallery' in parts or 'test' in parts):
        subsets['query'], subsets['test'] = rows['query'], rows['gallery' if 'gallery' in parts else 'test']
        missing = sorted(set(images['query']) - {pid for pid, _ in subsets['test']})
        if missing:
            warn(f'Identities of {parts["query"]} without an image to be found: {some(missing)}.')
    else:
        held_out = {}
        for part in ('query', 'gallery', 'test'):
            for pid, fids in images.get(part, {}).items():
                held_out.setdefault(pid, []).extend(fids)
        if held_out:
            subsets['query'], subsets['test'] = divide(held_out)
    for part in set(images) - {'train'}:
        shared = set(images[part]) & set(images.get('train', ()))
        if shared:
            warn(f'Identities in both {parts["train"]} and {parts[part]}: {some(shared)}. Then the score says nothing about '
                 f'identities that were not trained on.')
    return {subset: rows for subset, rows in subsets.items() if rows}


def moments_of(images, root, reading):
    """Return the camera or the sequence of each image, `Moments`.

    Args:
        images: list of (pid, file ids).
        reading: `Reading`.
    """
    converted = reading.convert is not None
    if reading.camera_folders or reading.camera_pattern:
        flag = '--camera_pattern' if reading.camera_pattern else '--camera_folders'
        pattern = reading.camera_pattern or reading.pattern(root, 'cid')
        pattern_of_excluder = reading.pattern(root, 'cid', reading.camera_pattern)
        return Moments('camera', _moments.by_pattern(images, flag, 'cid', pattern, pattern_of_excluder, converted))
    if reading.sequence_pattern:
        pattern_of_excluder = reading.pattern(root, 'sid', reading.sequence_pattern)
        return Moments('sequence', _moments.by_pattern(images, '--sequence_pattern', 'sid', reading.sequence_pattern,
                                                       pattern_of_excluder, converted))
    if reading.sequence_gap is not None:
        return Moments('sequence', _moments.by_time(root, images, reading.sequence_gap))
    return Moments(None, {})


class Moments(typing.NamedTuple):
    """The moments that images were taken at: kind is 'camera', 'sequence' or None, name_of_fid {file id: its name}."""
    kind: str | None
    name_of_fid: dict


def divided(images, *, moments, wanted, seed):
    """Divide the images of held-out identities into queries and gallery; return the rows of both.

    Args:
        images: {pid: file ids}.
        moments: `Moments`.
        wanted: number of queries per identity.
        seed: seed of the order in which images become queries.
    """
    queries, gallery = {}, {}
    for pid, fids in images.items():
        order = _files.shuffled(fids, seed)
        if moments.kind == 'sequence':
            queries[pid], gallery[pid] = _moments.queries_of_sequences(order, wanted, moments.name_of_fid)
            continue
        queries[pid] = (_moments.queries_of_cameras(order, wanted, moments.name_of_fid) if moments.kind == 'camera'
                        else order[:min(wanted, len(order) - 1)])
        gallery[pid] = [fid for fid in fids if fid not in queries[pid]]
    warn_of_few_queries(images, queries, wanted, moments)
    left = sum(map(len, images.values())) - sum(len(queries[pid]) + len(gallery[pid]) for pid in images)
    if left:
        print(f'{left} images of the sequences of queries are neither queries nor in the test set.')
    return tuple([(pid, fid) for pid, fids in each.items() for fid in sorted(fids)] for each in (queries, gallery))


def warn_of_few_queries(images, queries, wanted, moments):
    """Warn of held-out identities with fewer queries than wanted.

    Raises:
        InputError: there is no query, or no identity has enough images.
    """
    # Few images of some identities are a property of the data; a number of queries that none of them has is a mistake.
    most = max(map(len, images.values()))
    if most <= wanted:
        raise InputError(f'No held-out identity has {wanted + 1} images, {wanted} to search with and one to be found, '
                         f'but {most} at most; lower --query_per_identity or add images.')
    if not any(queries.values()):
        known = len(set(moments.name_of_fid.values()))
        raise InputError(f'No held-out identity is seen in two {moments.kind}s, of which {known} are known: there would be '
                         f'nothing to find.')
    held = f'of {len(images)} held-out identities'
    single = [pid for pid, fids in images.items() if len(fids) == 1]
    alone = [pid for pid in images if not queries[pid] and pid not in single]
    short = [pid for pid in images if 0 < len(queries[pid]) < wanted]
    if single:
        warn(f'{len(single)} {held} have one image, which is for the test set only: {some(single)}.')
    if alone:
        warn(f'{len(alone)} {held} are seen in one {moments.kind}, and are for the test set only: {some(alone)}.')
    if short:
        warn(f'{len(short)} {held} have fewer than {wanted + 1} images, {wanted} to search with and one to be found'
             f'{f" in another {moments.kind}" if moments.kind else ""}, and so fewer queries: {some(short)}.')

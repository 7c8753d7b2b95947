"""A dataset is a csv file without a header: `identity,relative/path.jpg[,tracklet]` per line, all of them strings."""
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import os

import numpy as np

from tripletreid.errors import InputError, warn
from tripletreid.names import (
    canonical_name,
    canonical_paths,
    is_junk,
    lookalikes,
    path_spelling_key,
    some_lookalikes,
    spelling_key,
)

BLOCK = 1 << 14  # Rows per block, where not all rows are needed at once.


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The rows of one csv file, in the order of its lines, with names and paths in canonical spelling (`names.py`).

    path: the csv file's path, for messages.
    pids: person ids (identities), object array of str [N].
    fids: file ids, i.e. image paths relative to the image root, object array of str [N] (or, for large galleries,
        something that is indexed and iterated like one: NumPy's strings, or `embeddings.StoredFids`).
    tracklets: names of the tracklets, object array of str [N], or None if the csv has two columns. A tracklet
        is the frames of one identity that share a name.
    sets: names of the joined datasets, which are prefixes of the pids and fids; () for a csv file.
    """
    path: str
    pids: np.ndarray
    fids: np.ndarray
    tracklets: np.ndarray | None = None
    sets: tuple = ()

    def __len__(self):
        return len(self.fids)

    @property
    def junk(self):
        """Return which rows are junk, images that show no identity, bool [N]."""
        junk = {pid: is_junk(pid) for pid in set(self.pids)}
        return np.fromiter(map(junk.get, self.pids), bool, len(self.pids))

    def take(self, rows):
        """Return the dataset of the given rows (an index array or a mask)."""
        tracklets = None if self.tracklets is None else self.tracklets[rows]
        return Dataset(self.path, self.pids[rows], self.fids[rows], tracklets, self.sets)

    def content_hash(self):
        """Return the SHA-256 of the identities and file ids of all rows in their order, as hexadecimal digits."""
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            block = slice(start, start + BLOCK)
            rows = zip(self.pids[block], self.fids[block])
            digest.update(''.join(f'{pid}\0{fid}\0' for pid, fid in rows).encode())
        return digest.hexdigest()

    def tracklet_of_row(self):
        """Return the number of each row's tracklet, int64 [N]; tracklets are numbered in the order of first frames."""
        import pandas as pd
        keys = pd.MultiIndex.from_arrays([self.pids, self.tracklets])
        return pd.factorize(keys)[0]

    def first_frames(self):
        """Return the dataset with one row per tracklet, its first frame: the rows of a pooled embedding file."""
        _, first_rows = np.unique(self.tracklet_of_row(), return_index=True)
        return self.take(first_rows)


def joined(datasets, names):
    """Join several datasets into one, in which nothing merges: each person id and file id begins with `NAME/`.

    Args:
        datasets: list of `Dataset`.
        names: their names, all different.

    Raises:
        InputError: some have tracklets and some do not.
    """
    with_tracklets = [dataset for dataset in datasets if dataset.tracklets is not None]
    if with_tracklets and len(with_tracklets) < len(datasets):
        without = next(dataset for dataset in datasets if dataset.tracklets is None)
        raise InputError(f'{with_tracklets[0].path} names tracklets in a third column and {without.path} does not: '
                         f'remove that column, or add one to the other.')

    def column(name):
        return np.concatenate([np.array([f'{prefix}/{each}' for each in getattr(dataset, name)], object)
                               for prefix, dataset in zip(names, datasets)])

    tracklets = np.concatenate([dataset.tracklets for dataset in datasets]) if with_tracklets else None
    return Dataset(' and '.join(dataset.path for dataset in datasets), column('pids'), column('fids'), tracklets,
                   tuple(names))


def load_sets(paths):
    """Load the training set of `train.py`.

    Args:
        paths: a csv file, or a list of several, which are `joined`; the names of the sets are the files' names.

    Returns: a `Dataset`.

    Raises:
        InputError: as `load_dataset` and `joined`.
    """
    if not isinstance(paths, list):
        return load_dataset(paths)
    return joined([load_dataset(path) for path in paths], [set_name(path) for path in paths])


def set_name(path):
    """Return the name of a csv file's set: the file's name without folder and ending."""
    return os.path.splitext(os.path.basename(path))[0]


def warn_of_lookalikes(*datasets):
    """Warn of identities, tracklets and paths that differ only in their spelling, within and between datasets; of images
    that one dataset holds in several rows, which count several times; and of images with several identities.

    Identities and tracklets are compared without leading zeros, case and Unicode form; paths without case and Unicode
    form. They count as different names all the same.
    """
    # Hashes of 8 bytes, because a set of the paths of millions of images would take most of the memory.
    hashes = [np.fromiter(map(hash, dataset.fids), np.int64, len(dataset)) for dataset in datasets]
    for dataset, file_hashes in zip(datasets, hashes):
        if repeated := len(_repetitions(file_hashes)):
            warn(f'{repeated} rows of {dataset.path} repeat an image of an earlier row, which counts again each time.')
    paths = ' and '.join(dict.fromkeys(dataset.path for dataset in datasets))
    if contradictory := _contradictory(datasets, np.concatenate(hashes)):
        number, fid, some_pids = contradictory
        warn(f'{number} images of {paths} have more than one identity, e.g. {fid} has {" and ".join(some_pids)}: scores '
             f'take each row as it stands, and one of them is wrong.')
    pids = set().union(*(dataset.pids for dataset in datasets))
    tracklets = set().union(*(zip(dataset.pids, dataset.tracklets)
                              for dataset in datasets if dataset.tracklets is not None))
    tracklet_lookalikes = lookalikes(tracklets, lambda pair: (pair[0], spelling_key(pair[1])))
    groups = {
        'identities': lookalikes(pids),
        'tracklets': [[tracklet for _, tracklet in pairs] for pairs in tracklet_lookalikes],
        'paths': lookalikes(_AllFids(datasets), path_spelling_key),
    }
    for kind, found in groups.items():
        if found:
            differences = 'case or Unicode form' if kind == 'paths' else 'leading zeros, case, blanks or Unicode form'
            warn(f'{sum(map(len, found))} {kind} of {paths} differ from another one only in {differences}, and count '
                 f'as different: {some_lookalikes(found)}. If two of them mean the same, give both one spelling.')


def _repetitions(numbers):
    """Return the numbers that occur again, once per further occurrence, ascending."""
    in_order = np.sort(numbers)  # `np.unique` computes hashes, which takes a hundred times as long.
    return in_order[1:][in_order[1:] == in_order[:-1]]


def _contradictory(datasets, hashes):
    """Find images with several identities among the rows of datasets, except junk.

    Args:
        hashes: of the file ids of all rows, int64 [N].

    Returns: (their number, the file id of one, its identities), or None.
    """
    kept = np.isin(hashes, _repetitions(hashes))
    kept &= ~np.concatenate([dataset.junk for dataset in datasets])
    pids = np.concatenate([np.fromiter(map(hash, dataset.pids), np.int64, len(dataset)) for dataset in datasets])
    order = np.lexsort([pids[kept], hashes[kept]])
    pids, hashes = pids[kept][order], hashes[kept][order]
    found = np.unique(hashes[1:][(hashes[1:] == hashes[:-1]) & (pids[1:] != pids[:-1])])
    if not len(found):
        return None
    rows = ((fid, pid) for dataset in datasets for fid, pid in zip(dataset.fids, dataset.pids))
    one = [row for row in rows if hash(row[0]) == found[0]]
    return len(found), one[0][0], sorted({pid for _, pid in one})


class _AllFids:
    """The file ids of several datasets, one after the other; none of them is copied."""

    def __init__(self, datasets):
        self._datasets = datasets

    def __iter__(self):
        return itertools.chain.from_iterable(dataset.fids for dataset in self._datasets)


def load_dataset(path, fid_type=object):
    """Read a dataset's csv file.

    Names and paths get their canonical spelling here, so that all others may compare them as they are.

    Args:
        path: the csv file. A byte order mark, CRLF line ends, quotes and blanks after a comma are understood.
        fid_type: dtype of the file ids; for millions of images NumPy's StringDType needs half of the memory.

    Returns: a `Dataset`.

    Raises:
        InputError: no such file, not UTF-8, empty, a line that is empty or does not have two (or three) columns.
    """
    with open_csv(path) as file:
        lines = sum(1 for _ in file)
    columns = [np.empty(lines, object), np.empty(lines, fid_type), np.empty(lines, object)]
    count = 0
    for block in read_blocks(path):
        for column, values in zip(columns, block):
            column[count:count + len(values)] = values
        count += len(block[0])
    return Dataset(str(path), *(column[:count] for column in columns[:len(block)]))


def read_blocks(path):
    """Read a dataset's csv file block by block.

    Yields: two or three lists of str [n], pids, fids and tracklets, of at most BLOCK rows; equal pids or tracklets are
        one and the same string, to save memory.

    Raises:
        InputError: as `load_dataset`.
    """
    # Python's reader takes a second for a million lines, and pandas half a second just to be imported.
    with open_csv(path) as file:
        yield from blocks_of(csv.reader(file, skipinitialspace=True, strict=True), path)


@contextlib.contextmanager
def open_csv(path, offset=0):
    """Open the csv file at an offset in bytes; errors of reading become an InputError."""
    if os.path.isdir(path):
        raise InputError(f'{path} is a folder, where the csv file of a dataset is expected; make_dataset.py folder '
                         f'{path} writes one for a folder of images.')
    if not os.path.isfile(path):
        raise InputError(f'There is no dataset file {path}.')
    try:
        with open(path, 'rb') as file:
            file.seek(offset)
            yield io.TextIOWrapper(file, 'utf-8' if offset else 'utf-8-sig', newline='')
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 text ({error.reason}).') from error
    except csv.Error as error:
        raise InputError(f'{path} is not a csv file of two or three columns in all lines: {error}.') from error


class _CanonicalNames(dict):
    """{a name as it is spelled: its canonical spelling}; equal names are one string."""

    def __missing__(self, spelled):
        name = canonical_name(spelled)
        self[spelled] = spelled if name == spelled else self[name]
        return self[spelled]


def blocks_of(reader, path, rows=None):
    """Yield the blocks of `read_blocks`, given a csv reader; only of the next `rows` rows, if that is not None.

    Raises:
        InputError, csv.Error: not all lines have two or three columns.
    """
    width = 0
    incomplete = []
    names = _CanonicalNames()
    block = ([], [], [])
    for row in itertools.islice(reader, rows):
        width = width or len(row)
        if width not in (0, 2, 3):
            raise InputError(f'{path} has {width} column(s) where identity,relative/path.jpg (and optionally a '
                             f'tracklet) are expected.')
        if len(row) > width:
            raise csv.Error(f'Expected {width} fields in line {reader.line_num}, saw {len(row)}')
        if len(row) < width or not row or not row[1] or not names[row[0]] or width == 3 and not names[row[2]]:
            incomplete.append(reader.line_num)
            continue
        block[0].append(names[row[0]])
        block[1].append(row[1])
        if width == 3:
            block[2].append(names[row[2]])
        if len(block[0]) == BLOCK:
            yield _canonical(block, width, path)
            block = ([], [], [])
    if not width:
        raise InputError(f'{path} is empty; expected lines of the form identity,relative/path.jpg.')
    if incomplete:
        raise InputError(f'{path} has {len(incomplete)} line(s) that are empty or lack a column, the first of them '
                         f'line {incomplete[0]}.')
    yield _canonical(block, width, path)


def _canonical(block, width, path):
    """Return the first `width` columns of a block, in which names are canonical, with canonical paths."""
    for column in block:
        if '\0' in ''.join(column):
            unprintable = next(value for value in column if '\0' in value)
            raise InputError(f'{path} has a NUL character in {unprintable!r}.')
    return block[0], canonical_paths(block[1]), *block[2:width]


def is_dataset(path):
    """Return whether a file is a dataset's csv file, by its first line."""
    with open(path, encoding='utf-8-sig', newline='') as file:
        try:
            return len(next(csv.reader(file, skipinitialspace=True, strict=True), ())) in (2, 3)
        except (UnicodeDecodeError, csv.Error):
            return False

"""A dataset is a csv file without a header: `identity,relative/path.jpg[,tracklet]` per line, all of them strings."""
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import multiprocessing.pool
import os
import re
import typing

import numpy as np

from tripletreid.errors import InputError
from tripletreid.files import written_whole

BLOCK = 1 << 14  # Rows at a time, where not all of them are needed at once.


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The rows of one csv file, in the order of its lines.

    path: the csv file's path, for messages.
    pids: person ids (identities), object array of str [N].
    fids: file ids, i.e. image paths relative to the image root, object array of str [N] (or, for large galleries, what
        is indexed and iterated like one: NumPy's strings, or `embeddings.StoredFids`).
    tracklets: names of the tracklets, object array of str [N], or None where the csv has two columns. A tracklet
        is the frames of one identity that share a name.
    sets: names of the datasets that were joined to this one, with which its pids and fids begin; () of a csv file.
    """
    path: str
    pids: np.ndarray
    fids: np.ndarray
    tracklets: np.ndarray | None = None
    sets: tuple = ()

    def __len__(self):
        return len(self.fids)

    def take(self, rows):
        """The dataset of the given rows (an index array or a mask)."""
        tracklets = None if self.tracklets is None else self.tracklets[rows]
        return Dataset(self.path, self.pids[rows], self.fids[rows], tracklets, self.sets)

    def content_hash(self):
        """SHA-256 of the identities and file ids of all rows in their order, as hexadecimal digits."""
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            some = slice(start, start + BLOCK)
            rows = zip(self.pids[some], self.fids[some])
            digest.update(''.join(f'{pid}\0{fid}\0' for pid, fid in rows).encode())
        return digest.hexdigest()

    def tracklet_of_row(self):
        """Number of the tracklet of each row, int64 [N]; tracklets are numbered in the order of their first frames."""
        import pandas as pd
        keys = pd.MultiIndex.from_arrays([self.pids, self.tracklets])
        return pd.factorize(keys)[0]

    def first_frames(self):
        """The dataset with one row a tracklet, its first frame: the rows of a pooled embedding file."""
        _, first_rows = np.unique(self.tracklet_of_row(), return_index=True)
        return self.take(first_rows)


def joined(datasets, names):
    """Several datasets as one, in which nothing merges: `NAME/` is in front of each person id and file id.

    Args:
        datasets: list of `Dataset`.
        names: their names, as different ones as they are.

    Raises:
        InputError: some have tracklets and some have not.
    """
    with_tracklets = [dataset for dataset in datasets if dataset.tracklets is not None]
    if with_tracklets and len(with_tracklets) < len(datasets):
        without = next(dataset for dataset in datasets if dataset.tracklets is None)
        raise InputError(f'{with_tracklets[0].path} names tracklets in a third column and {without.path} has none: '
                         f'take that column away, or add one to the other.')

    def column(name):
        return np.concatenate([np.array([f'{prefix}/{each}' for each in getattr(dataset, name)], object)
                               for prefix, dataset in zip(names, datasets)])

    tracklets = np.concatenate([dataset.tracklets for dataset in datasets]) if with_tracklets else None
    return Dataset(' and '.join(dataset.path for dataset in datasets), column('pids'), column('fids'), tracklets,
                   tuple(names))


def load_sets(paths):
    """Read what `train.py` trains on.

    Args:
        paths: a csv file, or a list of several, which are `joined`; the names of the sets are those of the files.

    Returns: a `Dataset`.

    Raises:
        InputError: as `load_dataset` and `joined`.
    """
    if not isinstance(paths, list):
        return load_dataset(paths)
    return joined([load_dataset(path) for path in paths], [set_name(path) for path in paths])


def image_root_of_sets(dataset, image_root):
    """What `image_path` takes for the file ids of a dataset, be it of one csv file or `joined`.

    Args:
        dataset: `Dataset`.
        image_root: a folder; of a joined dataset one for all sets, or a list with one for each.
    """
    if not dataset.sets:
        return image_root
    roots = image_root if isinstance(image_root, list) else [image_root] * len(dataset.sets)
    return dict(zip(dataset.sets, roots, strict=True))


def set_name(path):
    """What the set of a csv file is called: the file's name without folder and ending."""
    return os.path.splitext(os.path.basename(path))[0]


def load_dataset(path, fid_type=object):
    """Read a dataset's csv file.

    Args:
        path: the csv file. A byte order mark, CRLF line ends, quotes and blanks after a comma are understood.
        fid_type: dtype of the file ids; for millions of images NumPy's StringDType takes half of the memory.

    Returns: a `Dataset`.

    Raises:
        InputError: no such file, not UTF-8, empty, a line that is empty or has not two (or three) columns.
    """
    with _open_csv(path) as file:
        lines = sum(1 for _ in file)
    columns = [np.empty(lines, object), np.empty(lines, fid_type), np.empty(lines, object)]
    count = 0
    for block in read_blocks(path):
        for column, values in zip(columns, block):
            column[count:count + len(values)] = values
        count += len(block[0])
    return Dataset(str(path), *(column[:count] for column in columns[:len(block)]))


def read_blocks(path):
    """Read a dataset's csv file a part at a time.

    Yields: two or three lists of str [n], pids, fids and tracklets, of at most BLOCK rows each time; equal pids or
        tracklets are one and the same string, for the sake of memory.

    Raises:
        InputError: as `load_dataset`.
    """
    # Python's reader takes a second for a million lines, and pandas half a second just to be imported.
    with _open_csv(path) as file:
        yield from _blocks(csv.reader(file, skipinitialspace=True, strict=True), path)


class Part(typing.NamedTuple):
    """Successive rows of a csv file, of which nobody has to read the others.

    path: of the file.
    offset: where the first row begins, in bytes.
    rows: how many they are.
    """
    path: str
    offset: int
    rows: int

    def load(self):
        """The `Dataset` of these rows. Raises InputError as `load_dataset`."""
        with _open_csv(self.path, self.offset) as file:
            blocks = list(_blocks(csv.reader(file, skipinitialspace=True, strict=True), self.path, self.rows))
        columns = (np.array([value for block in blocks for value in block[column]], object)
                   for column in range(len(blocks[0])))
        return Dataset(str(self.path), *columns)


def bounds(rows, count):
    """The first row of each of `count` parts of nearly equal length, and the number of rows: ascending ints [count + 1].

    Of millions of rows a part begins at a multiple of a power of two, so that few offsets have to be known.
    """
    unit = 1 << max(0, (rows - 1 >> 20).bit_length())
    return [rows * number // count // unit * unit for number in range(count)] + [rows]


def parts(path, count):
    """Divide the rows of a csv file by `bounds`, without keeping them: a list of `Part`.

    Raises:
        InputError: no such file, or fewer rows than parts.
    """
    offsets, unit, rows, quotes, position = [0], 1, 0, 0, 0
    with _open_csv(path) as text:
        for line in text.buffer:
            position += len(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0:  # Inside of quotes a line ends without its row.
                rows += 1
                if rows % unit == 0:
                    offsets.append(position)
                    if len(offsets) > 1 << 21:
                        offsets, unit = offsets[::2], 2 * unit
    if rows < count:
        raise InputError(f'{path} has {rows} rows, too few for {count} parts.')
    ends = bounds(rows, count)
    return [Part(str(path), offsets[start // unit], stop - start) for start, stop in zip(ends, ends[1:])]


@contextlib.contextmanager
def _open_csv(path, offset=0):
    """The csv file, open at an offset in bytes, whose errors are told as sentences."""
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


def _blocks(reader, path, rows=None):
    """The blocks of `read_blocks`, given a csv reader; of the next `rows` rows, if that is not None.

    Raises:
        InputError, csv.Error: not all lines have two or three columns.
    """
    width = 0
    incomplete = []
    known = {}
    block = ([], [], [])
    for row in itertools.islice(reader, rows):
        width = width or len(row)
        if width not in (0, 2, 3):
            raise InputError(f'{path} has {width} column(s) where identity,relative/path.jpg (and optionally a '
                             f'tracklet) are expected.')
        if len(row) > width:
            raise csv.Error(f'Expected {width} fields in line {reader.line_num}, saw {len(row)}')
        if len(row) < width or '' in row or not row:
            incomplete.append(reader.line_num)
            continue
        if '\0' in ''.join(row):
            unprintable = next(value for value in row if '\0' in value)
            raise InputError(f'{path} has a NUL character in {unprintable!r}.')
        block[0].append(known.setdefault(row[0], row[0]))
        block[1].append(row[1])
        if width == 3:
            block[2].append(known.setdefault(row[2], row[2]))
        if len(block[0]) == BLOCK:
            yield block[:width]
            block = ([], [], [])
    if not width:
        raise InputError(f'{path} is empty; expected lines of the form identity,relative/path.jpg.')
    if incomplete:
        raise InputError(f'{path} has {len(incomplete)} line(s) that are empty or lack a column, the first of them '
                         f'line {incomplete[0]}.')
    yield block[:width]


def is_dataset(path):
    """Whether a file is a dataset's csv file, by its first line."""
    with open(path, encoding='utf-8-sig', newline='') as file:
        try:
            return len(next(csv.reader(file, skipinitialspace=True, strict=True), ())) in (2, 3)
        except (UnicodeDecodeError, csv.Error):
            return False


def save_dataset(path, dataset):
    """Write a dataset's csv file, whole or not at all."""
    columns = [dataset.pids, dataset.fids] + ([] if dataset.tracklets is None else [dataset.tracklets])
    save_datasets({path: zip(*columns)})


def save_datasets(rows_of_path):
    """Write csv files that belong together: all of them, or none.

    A kill between two renames must not leave a new training set beside an old test set, with images in both: so of the
    files of before all but one go first, and that one is replaced by the first rename.

    Args:
        rows_of_path: {path: rows of two or three str}; `load_dataset` reads the same rows.

    Raises:
        InputError: a name that is not UTF-8, or a path where a folder is.
        OSError: one of the paths cannot be written.
    """
    with contextlib.ExitStack() as files:
        for path, rows in rows_of_path.items():
            _write_rows(files.enter_context(written_whole(path)), rows)
        for path in list(rows_of_path)[:-1]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def _write_rows(path, rows):
    with open(path, 'w', encoding='utf-8', newline='') as file:
        plain = csv.writer(file, lineterminator='\n')
        quoted = csv.writer(file, lineterminator='\n', quoting=csv.QUOTE_ALL)
        for row in rows:
            # A blank at a field's start and a bare carriage return survive only inside of quotes.
            odd = any(re.search(r'^\s|\r', field) for field in row)
            try:
                (quoted if odd else plain).writerow(row)
            except UnicodeEncodeError as error:
                raise InputError(f'The file name {row[1]!a} is not UTF-8; rename it.') from error
        file.flush()
        os.fsync(file.fileno())  # A full disk is to be known of before anything is removed.


def image_path(image_root, fid):
    """The path of an image file: the one place that says how a file id becomes one.

    Args:
        image_root: a folder; or, of joined datasets, {name of a set: its folder}.
        fid: the file id.
    """
    if isinstance(image_root, dict):
        name, _, fid = fid.partition('/')
        image_root = image_root[name]
    return os.path.join(image_root, fid)


def file_problems(fids, image_root):
    """What is wrong with each image file: a list of 'missing', 'outside' (of the image root) or None.

    A path leads outside by `../`, by being absolute, or by a link. Folders are listed, and only what no listing has is
    asked for; both in parallel, since a network file system answers slowly, and with a progress bar after two seconds.
    """
    import tqdm
    real_root = os.path.realpath(image_root)
    folders = sorted({os.path.dirname(fid) for fid in fids})
    with multiprocessing.pool.ThreadPool(16) as pool:
        listings = pool.imap(lambda folder: _plain_files(image_path(image_root, folder), real_root), folders)
        listings = tqdm.tqdm(listings, 'Listing folders', len(folders), delay=2, leave=False)
        listed = dict(zip(folders, listings))
        others = [fid for fid in fids if os.path.basename(fid) not in listed[os.path.dirname(fid)]]
        answers = pool.imap(lambda fid: _problem(image_path(image_root, fid), real_root), others, chunksize=256)
        answers = tqdm.tqdm(answers, 'Checking files', len(others), delay=2, leave=False)
        problems = dict(zip(others, answers))
    return [problems.get(fid) for fid in fids]


def _plain_files(folder, real_root):
    """Names of the files, links left out, in a folder inside of the root; none where it cannot be listed."""
    if not is_inside(folder, real_root):
        return set()
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError:
        return set()


def _problem(path, real_root):
    """The answer for a file that no listing has: a link, a file under another spelling of its name, or none at all."""
    if not os.path.isfile(path):
        return 'missing'
    return None if is_inside(path, real_root) else 'outside'


def is_inside(path, real_root):
    """Whether a path leads into a folder (given without links), links followed."""
    return os.path.join(os.path.realpath(path), '').startswith(os.path.join(real_root, ''))


def check_files(dataset, image_root, allow_outside_root=False):
    """Check that every image of the dataset is there and inside the image root (`../`, absolute paths, links).

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
    """A guess why images are missing, as a sentence with a blank in front; empty where there is none.

    Args:
        fids: the file ids of a csv file, in the order of its lines.
        missing: those of them that are not there.
    """
    if any('\\' in fid for fid in missing):
        return r' Paths in the csv file are written with /, not with \.'
    endings = [os.path.splitext(fid)[1] for fid in fids[:2]]
    if fids[0] in missing and len(endings) == 2 and endings[1] and not endings[0]:
        return f' Its first line, with {fids[0]!r} for a path, looks like a header, which the csv file should not have.'
    return ''


def _some(names, limit=3):
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '')

"""A dataset is a csv file without a header: `identity,relative/path.jpg[,tracklet]` per line, all of them strings."""
import concurrent.futures
import csv
import dataclasses
import itertools
import os

import numpy as np

from errors import InputError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The rows of one csv file, in the order of its lines.

    path: the csv file's path, for messages.
    pids: person ids (identities), object array of str [N].
    fids: file ids, i.e. image paths relative to the image root, object array of str [N].
    tracklets: names of the tracklets, object array of str [N], or None where the csv has two columns. A tracklet
        is the frames of one identity that share a name.
    """
    path: str
    pids: np.ndarray
    fids: np.ndarray
    tracklets: np.ndarray | None = None

    def __len__(self):
        return len(self.fids)

    def take(self, rows):
        """The dataset of the given rows (an index array or a mask)."""
        tracklets = None if self.tracklets is None else self.tracklets[rows]
        return Dataset(self.path, self.pids[rows], self.fids[rows], tracklets)

    def tracklet_of_row(self):
        """Number of the tracklet of each row, int64 [N]; tracklets are numbered in the order of their first frames."""
        import pandas as pd
        keys = pd.MultiIndex.from_arrays([self.pids, self.tracklets])
        return pd.factorize(keys)[0]

    def first_frames(self):
        """The dataset with one row a tracklet, its first frame: the rows of a pooled embedding file."""
        _, first_rows = np.unique(self.tracklet_of_row(), return_index=True)
        return self.take(first_rows)


def load_dataset(path):
    """Read a dataset's csv file.

    Args:
        path: the csv file. A byte order mark, CRLF line ends, quotes and blanks after a comma are understood.

    Returns: a `Dataset`.

    Raises:
        InputError: no such file, not UTF-8, empty, a line that is empty or has not two (or three) columns.
    """
    import pandas as pd
    if not os.path.isfile(path):
        raise InputError(f'There is no dataset file {path}.')
    try:
        # Identities such as 0002, -1 or NA stay the strings that they are.
        table = pd.read_csv(path, header=None, dtype=object, keep_default_na=False, na_filter=False,
                            skip_blank_lines=False, skipinitialspace=True, encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 text ({error.reason} at byte {error.start}).') from error
    except pd.errors.EmptyDataError as error:
        raise InputError(f'{path} is empty; expected lines of the form identity,relative/path.jpg.') from error
    except (pd.errors.ParserError, csv.Error) as error:
        reason = ' '.join(str(error).split())
        raise InputError(f'{path} is not a csv file of two or three columns in all lines: {reason}.') from error
    if table.shape[1] not in (2, 3):
        raise InputError(f'{path} has {table.shape[1]} column(s) where identity,relative/path.jpg (and optionally a '
                         f'tracklet) are expected.')
    incomplete = np.flatnonzero((table == '').any(axis=1).to_numpy())
    if len(incomplete):
        raise InputError(f'{path} has {len(incomplete)} line(s) that are empty or lack a column, the first of them '
                         f'line {incomplete[0] + 1}.')
    columns = [table[column].to_numpy(dtype=object) for column in table]
    unprintable = [fid for fid in columns[1] if '\0' in fid]
    if unprintable:
        raise InputError(f'{path} has a file name with a NUL character: {unprintable[0]!r}.')
    return Dataset(str(path), *columns)


def image_path(image_root, fid):
    """The path of an image file."""
    return os.path.join(image_root, fid)


def _problem(image_root, real_root, fid, allow_outside_root):
    """'missing', 'outside' or None for one image file."""
    path = image_path(image_root, fid)
    if not allow_outside_root:
        real = os.path.realpath(path)
        if not real.startswith(os.path.join(real_root, '')):
            return 'outside'
    return None if os.path.isfile(path) else 'missing'


def check_files(dataset, image_root, allow_outside_root=False):
    """Check that every image of the dataset is there and inside the image root (`../`, absolute paths, links).

    Runs in parallel, since a network file system answers slowly; shows its progress when it takes seconds.

    Raises:
        InputError: no such image root, or files that are missing or outside (their count and the first few names).
    """
    import tqdm
    if not os.path.isdir(image_root):
        raise InputError(f'There is no image root {image_root}.')
    real_root = os.path.realpath(image_root)
    problems = {'missing': [], 'outside': []}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = pool.map(_problem, itertools.repeat(image_root), itertools.repeat(real_root), dataset.fids,
                         itertools.repeat(allow_outside_root), chunksize=256)
        bar = tqdm.tqdm(found, 'Checking files', len(dataset), delay=2, leave=False)
        for fid, problem in zip(dataset.fids, bar):
            if problem:
                problems[problem].append(fid)
    if problems['outside']:
        raise InputError(f'{len(problems["outside"])} of {len(dataset)} images of {dataset.path} lie outside of the '
                         f'image root {image_root}: {_some(problems["outside"])}. To read them all the same add '
                         f'--allow_outside_root.')
    if problems['missing']:
        raise InputError(f'{len(problems["missing"])} of {len(dataset)} images of {dataset.path} are not in '
                         f'{image_root}: {_some(problems["missing"])}.')


def _some(names, limit=3):
    return ', '.join(names[:limit]) + (', …' if len(names) > limit else '')

"""Write the csv files of datasets, each complete or not at all."""
import contextlib
import csv
import os
import re

from tripletreid.errors import InputError
from tripletreid.files import written_whole


def save_dataset(path, dataset):
    """Write a dataset's csv file, complete or not at all."""
    columns = [dataset.pids, dataset.fids] + ([] if dataset.tracklets is None else [dataset.tracklets])
    save_datasets({path: zip(*columns)})


def save_datasets(rows_of_path):
    """Write csv files that belong together: all of them, or none.

    A kill between two renames must not leave a new training set and an old test set, which may share images. Therefore
    all old files except one are removed first, and the first rename replaces that one.

    Args:
        rows_of_path: {path: rows of two or three str}; `load_dataset` reads the same rows, in canonical spelling.

    Raises:
        InputError: a name that is not UTF-8, or a path of a folder.
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
            # A blank at a field's start and a lone carriage return survive only inside of quotes.
            has_odd_blank = any(re.search(r'^\s|\r', field) for field in row)
            try:
                (quoted if has_odd_blank else plain).writerow(row)
            except UnicodeEncodeError as error:
                raise InputError(f'The file name {row[1]!a} is not UTF-8; rename it.') from error
        file.flush()
        os.fsync(file.fileno())  # A full disk must be noticed before anything is removed.

"""Rows of float32 numbers in a temporary file, for galleries that would take much memory."""
import os
import tempfile

import numpy as np

from tripletreid.files import reserve, write_at

BLOCK = 4096  # Rows that are copied at a time.


class TemporaryRows:
    """An array [N, D] in a file without a name, in the folder for temporary files; all rows are zeros at first.

    shape: (N, D).
    """

    def __init__(self, count, dim):
        """Reserve the file. Raises OSError where there is no room for the rows."""
        self.shape = count, dim
        self._row_bytes = 4 * dim
        self._file = tempfile.TemporaryFile(prefix='search_index', buffering=0)
        if count:
            reserve(self._file, count * self._row_bytes)

    def __getitem__(self, rows):
        """Return the rows of a slice with a step of 1, float32 [n, D]."""
        start, stop, _ = rows.indices(self.shape[0])
        return self.read_into(start, np.empty((max(0, stop - start), self.shape[1]), '<f4'))

    def read_into(self, start, embs):
        """Fill a contiguous array [n, D] with the rows from `start` on, and return it."""
        if embs.size and os.preadv(self._file.fileno(), [embs.data.cast('B')], start * self._row_bytes) < embs.nbytes:
            raise OSError('a temporary file was truncated')
        return embs

    def write(self, numbers, embs):
        """Set the rows with these numbers, an array of int64 [n], to embeddings [n, D]."""
        for run in _runs(numbers):
            write_at(self._file, numbers[run[0]] * self._row_bytes, np.ascontiguousarray(embs[run[0]:run[-1] + 1], '<f4'))

    def take(self, numbers):
        """Return the rows with these numbers, an array of int64 [n], as new `TemporaryRows`."""
        taken = TemporaryRows(len(numbers), self.shape[1])
        for start in range(0, len(numbers), BLOCK):
            some = numbers[start:start + BLOCK]
            embs = np.empty((len(some), self.shape[1]), '<f4')
            for run in _runs(some):
                self.read_into(some[run[0]], embs[run[0]:run[-1] + 1])
            taken.write(np.arange(start, start + len(some)), embs)
        return taken


def _runs(numbers):
    """Return the places of consecutive numbers in an array, a list of arrays, because one call reads or writes them all."""
    return np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []

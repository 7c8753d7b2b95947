"""Embedding files (`.h5`): open one and read its rows, a few at a time.

    emb                 float32 [N, D]; `embs` is a second name for the same data
    emb_aug             float32 [A, N, D], only where there are several variants of an image
    checksums           uint64 [N], `checksums` of the rows of `emb`; missing in files of earlier versions
    augmentation_types  bytes [A], the names of the variants
    fids                UTF-8 strings [N]: the file ids of the rows, so that files are never matched with another csv
    tracklets           UTF-8 strings [N], only where the rows are pooled tracklets; a row's fid is its first frame's
    attributes          `parameters` and `provenance`, both JSON
"""
import functools
import json
import os

import h5py
import numpy as np

from tripletreid.dataset import BLOCK
from tripletreid.errors import InputError
from tripletreid.files import check_file
from tripletreid.names import canonical_paths

CACHED_BLOCKS = 8  # Blocks of file ids that stay in memory, about 2 MB each.


def checksums(embs):
    """Return a number for each row of [N, D] float32 that changes with each of its bits, uint64 [N], never 0."""
    return np.ascontiguousarray(embs, '<f4').view('<u4').sum(axis=1, dtype=np.uint64) + np.uint64(1)


class Rows:
    """Base of `Embeddings` and `Shards`, which have `path`, `shape`, `has_fids` and `fids_of_rows`."""

    def __len__(self):
        return self.shape[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def fids(self):
        """File ids of all rows, object array of str [N]; None in a file of the original."""
        return self.fids_of_rows(0, len(self)) if self.has_fids else None

    def check_matches(self, dataset):
        """Check that the rows belong to `dataset`, in its order.

        Raises:
            InputError: another number of rows, or other file ids: query and gallery swapped, or an edited csv.
        """
        self.check_fids((dataset.fids[start:start + BLOCK] for start in range(0, len(dataset), BLOCK)), dataset.path)

    def check_fids(self, blocks, path):
        """Check the file ids of all rows.

        Args:
            blocks: the expected file ids in arrays or lists, in order; iterated once and to the end.
            path: path of their csv file, for messages.

        Raises:
            InputError: as `check_matches`.
        """
        start, difference = 0, None
        for fids in blocks:
            if difference is None and self.has_fids:
                stored = self.fids_of_rows(start, start + len(fids))
                different = np.flatnonzero(stored != np.array(fids[:len(stored)], object))
                if len(different):
                    row = different[0]
                    difference = (f'row {start + row} (counted from 0) is {stored[row]} there and {fids[row]} in the '
                                  f'csv file')
            start += len(fids)
        if start != len(self):
            raise InputError(f'{self.path} has {len(self)} rows, but {path} has {start}. Is it the embedding of another '
                             f'dataset (query and gallery swapped)?')
        if difference:
            raise InputError(f'{self.path} was made from other rows than {path}: {difference}.')


class Embeddings(Rows):
    """An open embedding file. Use it as a context manager; `rows` reads only the requested rows.

    Attributes:
        path: the file's path.
        shape: (N, D).
        pooled: whether the rows are tracklets.
        parameters: parameters of `embed.py`, a dict (empty in a file of the original).
    """

    def __init__(self, path):
        """Open a file.

        Raises:
            InputError: the file is missing, is not HDF5, is truncated, locked or being written, or has no embeddings.
        """
        self.path = str(path)
        check_file(path, 'embedding file', '.h5')
        try:
            self._file = h5py.File(path, 'r', locking='best-effort')  # A file system without locks is no error.
        except OSError as error:
            if isinstance(error, BlockingIOError) or 'unable to lock file' in str(error):
                raise InputError(f'{path} is locked by another program that has it open for writing. Close that program '
                                 f'or wait for it; the file itself is not damaged.') from error
            raise InputError(f'{path} cannot be read as HDF5: it is truncated, still being written, or of another '
                             f'format. Embed again, or wait for embed.py to end.') from error
        try:
            self._read_header()
            self._fids_of_block = functools.lru_cache(CACHED_BLOCKS)(functools.partial(_fids_of_block, self._file))
        except InputError:
            self.close()
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.close()
            raise InputError(f'{path} is damaged ({error}). Embed again.') from error

    def _read_header(self):
        name = next((name for name in ('emb', 'embs') if self._is_own_array(name)), None)
        if name is None:
            held = ', '.join(self._file) or 'nothing'
            raise InputError(f'{self.path} has no dataset "emb" (nor "embs"), but {held}. Is it an embedding file?')
        self.emb = self._file[name]
        if self.emb.ndim != 2 or self.emb.dtype.kind != 'f':
            raise InputError(f'{self.path}: "{name}" is {self.emb.dtype} of shape {self.emb.shape} where floats '
                             f'[rows, dimensions] are expected.')
        self.shape = self.emb.shape
        if 'fids' in self._file:
            if not (self._is_own_array('fids') and self._file['fids'].shape == self.shape[:1]):
                raise ValueError('"fids" is not one string a row')
            _check_fixed_length('fids', self._file['fids'].dtype)
        self._checksums = self._file['checksums'] if 'checksums' in self._file else None
        if self._checksums is not None and (self.emb.dtype != '<f4' or not self._is_own_array('checksums')
                                            or (self._checksums.shape, self._checksums.dtype) != (self.shape[:1], '<u8')):
            raise ValueError('"checksums" is not one number a row')
        self.pooled = 'tracklets' in self._file
        self.parameters = {}
        if 'parameters' in self._file.attrs:
            _check_fixed_length('parameters', self._file.attrs.get_id('parameters').dtype)
            self.parameters = json.loads(self._file.attrs['parameters'])
        if not isinstance(self.parameters, dict):
            raise ValueError('"parameters" is not a JSON object')

    def _is_own_array(self, name):
        """Return whether the file itself holds an array of this name: not a link to another file, not a virtual array.

        Raises ValueError for an array that is declared larger than compression at its best (DEFLATE's 1032 : 1) allows.
        """
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            return False
        array = self._file[name]
        if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
            return False
        if array.nbytes > 1032 * os.path.getsize(self.path):
            raise ValueError(f'"{name}" of shape {array.shape} is far larger than the file')
        return True

    def __reduce__(self):
        return Embeddings, (os.path.abspath(self.path),)  # Another process opens the file itself.

    def close(self):
        self._file.close()

    @property
    def has_fids(self):
        """True if the file holds the file ids of its rows; files of the original do not."""
        return 'fids' in self._file

    def fids_of_rows(self, start, stop):
        """Read the canonical file ids of the rows [start, stop), object array of str, from a file that has them.

        Raises:
            InputError: a damaged file.
        """
        stop = min(stop, len(self))
        first, last = start // BLOCK, -(-stop // BLOCK)
        try:
            blocks = [self._fids_of_block(number) for number in range(first, last)]
            return np.concatenate([np.empty(0, object), *blocks])[start - first * BLOCK:stop - first * BLOCK]
        except (OSError, RuntimeError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(f'{self.path} is damaged ({error}). Embed again.') from error

    def rows(self, start, stop):
        """Read the embeddings of the rows [start, stop), float32 [stop - start, D].

        Raises:
            InputError: NaN or infinity (the rows are named), or a damaged file, also by the rows' checksums.
        """
        try:
            rows = self.emb[start:stop].astype(np.float32, copy=False)
            expected = None if self._checksums is None else self._checksums[start:stop]
        except (OSError, RuntimeError) as error:
            raise InputError(f'{self.path} is damaged at rows {start} to {stop}: {error}. Embed again.') from error
        if expected is not None and (damaged := np.flatnonzero(checksums(rows) != expected)).size:
            raise InputError(f'{self.path} is damaged, or was edited: row {start + damaged[0]} (counted from 0) does not '
                             f'have its checksum. Embed again; or, if you edited it on purpose, delete "checksums" from it.')
        # A sum is finite only if all of its terms are, and costs no array of the size of `rows`.
        if not np.isfinite(rows.sum(dtype=np.float64)):
            broken = start + np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if len(broken):
                some = ', '.join(map(str, broken[:5])) + (', …' if len(broken) > 5 else '')
                raise InputError(f'{self.path} has NaN or infinite embeddings in rows counted from 0: {some}.')
        return rows

    def read_into(self, start, embs):
        """Read rows that `rows` has already checked, without checking their values again.

        Args:
            start: the first row.
            embs: float32 [n, D], a contiguous array to read into, where the file's layout allows.

        Returns: `embs`, or another array with the rows.

        Raises:
            InputError: a damaged file.
        """
        place = self.emb.id.get_offset()
        if place is None or self.emb.dtype != np.dtype('<f4') or self._file.driver != 'sec2':
            return self.rows(start, start + len(embs))
        content = memoryview(embs).cast('B')
        # HDF5 itself takes several times as long.
        read = os.preadv(self._file.id.get_vfd_handle(), [content], place + start * embs.itemsize * self.shape[1])
        if read < len(content):
            raise InputError(f'{self.path} is damaged: it was truncated since it was opened. Embed again.')
        return embs


def _check_fixed_length(name, dtype):
    # HDF5 stores texts of variable length in a heap; in a damaged heap it loops for ever.
    if dtype.kind != 'S':
        raise ValueError(f'"{name}" is {dtype} where text of a fixed length is expected')


def is_embeddings(path):
    """Return whether a file is an embedding file, or a damaged one. Raises OSError when it is not HDF5."""
    with h5py.File(path, 'r', locking=False) as file:
        return 'emb' in file or 'embs' in file


def _fids_of_block(file, number):
    """Read the canonical file ids of one block of rows of an open HDF5 file, object array of str [at most BLOCK]."""
    start = number * BLOCK
    fids = file['fids'].asstr()[start:start + BLOCK].tolist()
    if '\0' in ''.join(fids):
        row = next(row for row, fid in enumerate(fids, start) if '\0' in fid)
        raise ValueError(f'the file id of row {row} has a NUL character')
    return np.array(canonical_paths(fids), object)  # Earlier versions stored them as the csv spelled them.

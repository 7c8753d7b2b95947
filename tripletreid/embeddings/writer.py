"""Embedding files (`.h5`): write one a few rows at a time, and continue after an interruption."""
import contextlib
import dataclasses
import json
import os

import h5py
import numpy as np

from tripletreid import signals
from tripletreid.dataset import Dataset
from tripletreid.embeddings.reader import checksums
from tripletreid.errors import InputError
from tripletreid.files import lock, reserve, sync_folder, write_at
from tripletreid.names import canonical_paths

COUNT_BYTES = 8


@dataclasses.dataclass(frozen=True)
class FileContent:
    """Content of an embedding file besides its rows.

    dataset: the `Dataset` of the rows.
    dim: D.
    parameters: JSON-serialisable dict; rows written with other parameters are never continued.
    augmentation_types: names of the variants of each image; empty where they are unknown.
    provenance: JSON-serialisable dict.
    pooled: whether the rows are tracklets.
    arrays: additional arrays to store, {name: array}.
    """
    dataset: Dataset
    dim: int
    parameters: dict
    augmentation_types: tuple | list = ()
    provenance: dict = dataclasses.field(default_factory=dict)
    pooled: bool = False
    arrays: dict = dataclasses.field(default_factory=dict)

    def is_in(self, path):
        """Return whether an `EmbeddingWriter` wrote this content to a file, finished or not."""
        with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError):
            with h5py.File(path, 'r', locking=False) as file:
                types = file['augmentation_types'].asstr()[()].tolist() if len(self.augmentation_types) else []
                return (json.loads(file.attrs['parameters']) == json.loads(json.dumps(self.parameters))
                        and types == list(self.augmentation_types) and file['emb'].shape == (len(self.dataset), self.dim)
                        and canonical_paths(file['fids'].asstr()[()]) == list(self.dataset.fids))
        return False


def unfinished(path):
    """Return the path of the file that an interrupted `EmbeddingWriter` of `path` leaves."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f'.{name}.partial')


def save_embeddings(path, dataset, emb, parameters=None):
    """Write an embedding file at once.

    Args:
        path: path of the `.h5` file.
        dataset: the `Dataset` of the rows.
        emb: [N, D].
        parameters: JSON-serialisable dict that describes how the embeddings were made.
    """
    with EmbeddingWriter(path, FileContent(dataset, emb.shape[1], parameters or {})) as writer:
        writer.append(emb)


class EmbeddingWriter:
    """Writer of an embedding file, a few rows at a time.

    Use it as a context manager. It writes to a hidden temporary file, which is renamed when the block ends well. When
    the block fails, the temporary file keeps the rows so far, and a later writer with `resume` and the same content
    continues after them.

    HDF5 makes the file; the rows are then written to their place without HDF5, which on a full disk loses rows without
    an error. The temporary file ends in the number of rows that are complete, COUNT_BYTES long.

    Attributes:
        rows_done: number of rows that are already written (above 0 only with `resume`).
    """

    def __init__(self, path, content, resume=False):
        """Create the temporary file, or open the one that an interrupted writer left.

        Args:
            path: path of the `.h5` file.
            content: `FileContent`.
            resume: whether to continue an interrupted writer's rows.

        Raises:
            InputError: another process is writing the file.
        """
        self.path = os.path.abspath(path)
        self.temporary = unfinished(path)
        # Opened without truncation, because another process may be writing to it.
        self._file = open(os.open(self.temporary, os.O_RDWR | os.O_CREAT, 0o666), 'r+b', buffering=0)
        if not lock(self._file):
            self._file.close()
            raise InputError(f'Another process is writing {path}. Wait for it or stop it.')
        self.rows_done = 0
        if resume:
            self.rows_done = self._rows_of_interrupted(content)
        if not self.rows_done:
            try:
                self._create(content)
            except OSError as error:
                os.remove(self.temporary)
                error.filename = error.filename or path
                raise
        with h5py.File(self.temporary, 'r', locking=False) as file:
            self._places = {name: (file[name].id.get_offset(), file[name].shape)
                            for name in ('emb', 'emb_aug', 'checksums') if name in file}

    def _rows_of_interrupted(self, content):
        """Return the number of rows that an interrupted writer of the same content left, 0 without such a writer."""
        if not content.is_in(self.temporary):
            return 0
        self._end = os.path.getsize(self.temporary) - COUNT_BYTES
        rows = int.from_bytes(os.pread(self._file.fileno(), COUNT_BYTES, self._end), 'little')
        return rows if rows <= len(content.dataset) else 0

    def _create(self, content):
        variants = len(content.augmentation_types) if len(content.augmentation_types) > 1 else 0
        rows, dim = len(content.dataset), content.dim
        # A disk without room for all rows is an error now, and not after hours.
        reserve(self._file, (1 + variants) * rows * dim * 4 + rows * 8 + (1 << 16))
        with h5py.File(self.temporary, 'w', locking=False) as file:
            # Contiguous arrays of the final size, whose place in the file no longer changes.
            early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            file.create_dataset('emb', (rows, dim), '<f4', dcpl=early)
            file['embs'] = file['emb']
            file.create_dataset('checksums', (rows,), '<u8', dcpl=early)
            if variants:
                file.create_dataset('emb_aug', (variants, rows, dim), '<f4', dcpl=early)
            if len(content.augmentation_types):
                file['augmentation_types'] = np.array(content.augmentation_types, dtype='S')
            file['fids'] = _fixed_length(content.dataset.fids)
            if content.pooled:
                file['tracklets'] = _fixed_length(content.dataset.tracklets)
            for name, array in content.arrays.items():
                file[name] = array
            file.attrs['parameters'] = _fixed_length([json.dumps(content.parameters, sort_keys=True)])[0]
            file.attrs['provenance'] = _fixed_length([json.dumps(content.provenance, sort_keys=True)])[0]
        self._end = os.path.getsize(self.temporary)
        reserve(self._file, self._end + COUNT_BYTES)

    def append(self, emb, emb_aug=None):
        """Write the next rows.

        Args:
            emb: [B, D], the (aggregated) embeddings.
            emb_aug: [A, B, D], the embeddings of the variants; stored where there are several.
        """
        emb = np.ascontiguousarray(emb, '<f4')
        self._write('emb', (), emb)
        if 'checksums' in self._places:  # The unfinished file of an earlier version has none.
            write_at(self._file, self._places['checksums'][0] + 8 * self.rows_done, checksums(emb))
        if 'emb_aug' in self._places:
            for variant, embs in enumerate(emb_aug):
                self._write('emb_aug', (variant,), embs)
        # The count reaches the disk after the rows, so that it never counts rows that are not on the disk.
        os.fsync(self._file.fileno())
        self.rows_done += len(emb)
        write_at(self._file, self._end, self.rows_done.to_bytes(COUNT_BYTES, 'little'))

    def _write(self, name, variant, embs):
        start, shape = self._places[name]
        if self.rows_done + len(embs) > shape[-2] or embs.shape[1:] != shape[-1:]:
            raise ValueError(f'rows of shape {embs.shape} after row {self.rows_done} of {shape}')
        index = np.ravel_multi_index((*variant, self.rows_done, 0), shape)
        write_at(self._file, start + index * 4, np.ascontiguousarray(embs, '<f4'))

    def __enter__(self):
        self._when_interrupted = signals.undone(self._remove_if_empty)
        self._when_interrupted.__enter__()
        return self

    def __exit__(self, kind, *_):
        with self._file, contextlib.ExitStack() as ended:
            ended.push(self._when_interrupted)
            if kind is None and self.rows_done != len(self):
                raise ValueError(f'{self.rows_done} rows were written of {len(self)}')
            if kind is None:
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
                os.replace(self.temporary, self.path)
                sync_folder(os.path.dirname(self.path))
            else:
                self._remove_if_empty()

    def _remove_if_empty(self):
        if not self.rows_done:
            os.remove(self.temporary)

    def __len__(self):
        return self._places['emb'][1][0]


def _fixed_length(texts):
    """Encode strings as UTF-8 texts of one length, an array of HDF5's type for them."""
    encoded = np.array([text.encode() for text in texts])
    return encoded.astype(h5py.string_dtype('utf-8', max(1, encoded.itemsize)))

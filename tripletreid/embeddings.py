"""Embedding files: `.h5` with the rows of a dataset's csv, read and written a few rows at a time.

    emb                 float32 [N, D]; `embs` is a second name for the same data
    emb_aug             float32 [A, N, D], only where there are several variants of an image
    augmentation_types  bytes [A], the names of the variants
    fids                UTF-8 strings [N]: the file ids of the rows, so that files are never matched with another csv
    tracklets           UTF-8 strings [N], only where the rows are pooled tracklets; a row's fid is its first frame's
    attributes          `parameters` and `provenance`, both JSON
"""
import collections
import contextlib
import glob
import json
import os
import re

import h5py
import numpy as np

from tripletreid import signals
from tripletreid.dataset import BLOCK, Dataset, load_dataset, read_blocks
from tripletreid.errors import InputError
from tripletreid.files import check_file, lock, reserve, sync_folder, write_at

COUNT_BYTES = 8
SHARD_NAME = re.compile(r'(.*)-(\d{5,})-of-(\d{5,})\.h5')
FILES_AT_ONCE = 64  # Open ones of many shards: a process may have a thousand or so.
# Parameters of `embed.py` that say where things are and who did the work, not what the embeddings are.
OF_NO_CONSEQUENCE = {'allow_outside_root', 'batch_size', 'dask', 'dataset', 'experiment_root', 'filename', 'image_root',
                     'shards', 'skip_broken_images'}
# Of consequence for every distance to others, and what to call another one.
DIFFERENCES = {'checkpoint_sha256': 'another checkpoint', 'weights': 'other weights of the checkpoint',
               'flip_augment': 'other test-time augmentation',
               'crop_augment': 'other test-time augmentation', 'aggregator': 'other test-time augmentation'}


def difference(parameters, made_by):
    """In which way embeddings were made differently, in words; None where they were made alike.

    Args:
        parameters: of an embedding file, a dict; names that it does not have are passed over.
        made_by: of a `search.embedder.Embedder`, or the parameters of another file that are in DIFFERENCES.
    """
    different = [name for name, value in made_by.items() if parameters.get(name, value) != value]
    return DIFFERENCES.get(different[0], 'another net or size of images') if different else None


class Rows:
    """What one embedding file and several of them can do alike, given `path`, `shape`, `has_fids` and `fids_of_rows`."""

    def __len__(self):
        return self.shape[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def fids(self):
        return self.fids_of_rows(0, len(self)) if self.has_fids else None

    def check_matches(self, dataset):
        """Check that the rows are those of `dataset`, in its order.

        Raises:
            InputError: another number of rows, or other file ids: query and gallery swapped, or an edited csv.
        """
        self.check_fids((dataset.fids[start:start + BLOCK] for start in range(0, len(dataset), BLOCK)), dataset.path)

    def check_fids(self, blocks, path):
        """Check that the file ids of the rows are these: the work of `check_matches`.

        Args:
            blocks: the file ids in arrays or lists, in order; iterated once and to the end.
            path: of the csv file that they are from, for messages.
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
    """An open embedding file. Use it as a context manager; `rows` reads what is asked for and no more.

    Attributes:
        path: the file's path.
        shape: (N, D).
        fids: file ids of the rows, object array of str [N], or None in a file of the original.
        pooled: whether the rows are tracklets.
        parameters: what `embed.py` was run with, a dict (empty in a file of the original).
    """

    def __init__(self, path):
        """Raises InputError when the file is missing, no HDF5 file, truncated, being written or without embeddings."""
        self.path = str(path)
        check_file(path, 'embedding file', '.h5')
        try:
            self._file = h5py.File(path, 'r')
        except OSError as error:
            raise InputError(f'{path} cannot be read as HDF5: it is truncated, still being written, or of another '
                             f'format. Embed again, or wait for embed.py to end.') from error
        try:
            self._read_header()
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
        self.pooled = 'tracklets' in self._file
        self.parameters = {}
        if 'parameters' in self._file.attrs:
            _check_fixed_length('parameters', self._file.attrs.get_id('parameters').dtype)
            self.parameters = json.loads(self._file.attrs['parameters'])
        if not isinstance(self.parameters, dict):
            raise ValueError('"parameters" is not a JSON object')

    def _is_own_array(self, name):
        """Whether the file holds an array of this name: not a link to another file, nor one put together of others.

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
        """Whether the file holds the file ids of its rows; those of the original do not."""
        return 'fids' in self._file

    def fids_of_rows(self, start, stop):
        """File ids of the rows [start, stop), object array of str, in a file that has them."""
        try:
            return self._file['fids'].asstr()[start:stop].astype(object)
        except (OSError, RuntimeError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(f'{self.path} is damaged ({error}). Embed again.') from error

    def rows(self, start, stop):
        """Embeddings of the rows [start, stop), float32 [stop - start, D].

        Raises:
            InputError: NaN or infinity (the rows are named), or a damaged file.
        """
        try:
            rows = self.emb[start:stop].astype(np.float32, copy=False)
        except (OSError, RuntimeError) as error:
            raise InputError(f'{self.path} is damaged at rows {start} to {stop}: {error}. Embed again.') from error
        # A sum is finite only if all of its terms are, and costs no array of the size of `rows`.
        if not np.isfinite(rows.sum(dtype=np.float64)):
            broken = start + np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if len(broken):
                some = ', '.join(map(str, broken[:5])) + (', …' if len(broken) > 5 else '')
                raise InputError(f'{self.path} has NaN or infinite embeddings in rows counted from 0: {some}.')
        return rows

    def array_beside(self, name):
        """An array that an `EmbeddingWriter` was given to keep beside the rows.

        Raises:
            InputError: there is none, or the file is damaged.
        """
        try:
            if self._is_own_array(name):
                return self._file[name][()]
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f'{self.path} is damaged ({error}).') from error
        raise InputError(f'{self.path} has no "{name}".')

    def read_into(self, start, embs):
        """Embeddings of some rows that `rows` has read before, without another look at their values.

        Args:
            start: the first row.
            embs: float32 [n, D], a contiguous array that they are read into, where the file allows.

        Returns: that array, or another one with the rows.

        Raises:
            InputError: a damaged file.
        """
        place = self.emb.id.get_offset()
        if place is None or self.emb.dtype != np.dtype('<f4') or self._file.driver != 'sec2':
            return self.rows(start, start + len(embs))
        content = memoryview(embs).cast('B')
        # HDF5 itself takes several times as long for it.
        read = os.preadv(self._file.id.get_vfd_handle(), [content], place + start * embs.itemsize * self.shape[1])
        if read < len(content):
            raise InputError(f'{self.path} is damaged: it was truncated since it was opened. Embed again.')
        return embs


class Shards(Rows):
    """Several open embedding files whose rows are read as those of one, the first row of a file behind the last of the
    one before. Use it as a context manager.

    Attributes:
        path: what to call them in messages.
        paths: of the files.
        shape, fids, pooled, parameters: as of `Embeddings`; the parameters are those of the first file.
    """

    def __init__(self, paths):
        """
        Args:
            paths: of two or more files, in their order.

        Raises:
            InputError: as `Embeddings`; or files that do not belong together: of other dimensions, one with pooled
                tracklets or file ids and one without, or made by another checkpoint or with other flags.
        """
        self.paths = list(paths)
        self.path = f'{paths[0]} and {len(paths) - 1} more'
        self._open = {}
        first, starts = None, [0]
        for number, path in enumerate(self.paths):
            file = self._file(number)
            starts.append(starts[-1] + len(file))
            facts = _facts(file)
            if first is None:
                first, self.parameters = facts, file.parameters
                self.pooled, self.has_fids = file.pooled, file.has_fids
            odd = next((name for name in {**first, **facts} if first.get(name) != facts.get(name)), None)
            if odd:
                self.close()
                raise InputError(f'{paths[0]} and {path} are no parts of one whole: {odd} {first.get(odd)} there and '
                                 f'{facts.get(odd)} here. Embed one of them again.')
        self._starts = np.array(starts)
        self.shape = (starts[-1], first['dimensions'])

    def _file(self, number):
        """The open `Embeddings` of a file."""
        if number not in self._open:
            if len(self._open) == FILES_AT_ONCE:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = Embeddings(self.paths[number])
        return self._open[number]

    def __getstate__(self):
        # Another process opens the files itself, those that it needs.
        return {**vars(self), '_open': {}, 'paths': list(map(os.path.abspath, self.paths))}

    def close(self):
        for file in self._open.values():
            file.close()

    def _parts(self, start, stop):
        """(open file, its own first row, its own row behind the last) of the files that hold some rows."""
        number = int(np.searchsorted(self._starts, start, side='right')) - 1
        while start < stop:
            before, end = self._starts[number:number + 2]
            if start < end:
                yield self._file(number), int(start - before), int(min(stop, end) - before)
            start, number = max(start, end), number + 1

    def fids_of_rows(self, start, stop):
        """As of `Embeddings`."""
        parts = [file.fids_of_rows(*rows) for file, *rows in self._parts(start, min(stop, len(self)))]
        return np.concatenate([np.empty(0, object), *parts])

    def rows(self, start, stop):
        """As of `Embeddings`."""
        parts = [file.rows(*rows) for file, *rows in self._parts(start, min(stop, len(self)))]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.shape[1]), np.float32), *parts])

    def read_into(self, start, embs):
        """As of `Embeddings`."""
        done = 0
        for file, first, last in self._parts(start, start + len(embs)):
            part = embs[done:done + last - first]
            read = file.read_into(first, part)
            if read is not part:
                part[:] = read
            done += last - first
        return embs


def _facts(embeddings):
    """What open `Embeddings` must have in common to be parts of one whole, in words, a dict."""
    return {'dimensions': embeddings.shape[1], 'pooled tracklets': embeddings.pooled, 'file ids': embeddings.has_fids,
            **{name: value for name, value in sorted(embeddings.parameters.items()) if name not in OF_NO_CONSEQUENCE}}


def shard_names(path, count):
    """The names of `count` files that share the rows of an `.h5` file, NAME-00002-of-00010.h5; None: that file's own."""
    stem = os.path.splitext(path)[0]
    return [path] if count is None else [f'{stem}-{number:05}-of-{count:05}.h5' for number in range(count)]


def in_order(paths):
    """The embedding files that a flag names, in the order of their rows.

    Args:
        paths: a path or a list of them; one with a `*` that is no file stands for those that fit it.

    Returns: a list of paths. Those that `shard_name` names are all there and sorted; others stay as they were given.

    Raises:
        InputError: nothing fits a pattern, a file is named twice, or of the parts of a whole some are missing, or they
            are parts of several wholes.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    found = []
    for path in map(str, paths):
        fitting = sorted(glob.glob(path)) if '*' in path and not os.path.exists(path) else [path]
        if not fitting:
            raise InputError(f'There is no embedding file that fits {path}.')
        found += fitting
    twin = next((path for path, times in collections.Counter(found).items() if times > 1), None)
    if twin:
        raise InputError(f'{twin} is named twice.')
    parts = {path: SHARD_NAME.fullmatch(path) for path in found}
    if not any(parts.values()):
        return found
    wholes = {(part[1], part[3]) if part else path: path for path, part in parts.items()}
    if len(wholes) > 1:
        raise InputError(f'{" and ".join(list(wholes.values())[:2])} are no parts of one whole: name all parts of one, and '
                         f'nothing else.')
    [(stem, count)] = wholes
    number_of = {path: int(part[2]) for path, part in parts.items()}
    missing = sorted(set(range(int(count))) - set(number_of.values()))
    if missing:
        some = ', '.join(f'{stem}-{number:05}-of-{count}.h5' for number in missing[:3])
        raise InputError(f'{len(missing)} of {int(count)} parts are missing: {some}{", …" if missing[3:] else ""}. Name all '
                         f'of them; those that are not there are embedded with --resume.')
    return sorted(found, key=number_of.get)


def name_of_whole(paths):
    """The `.h5` path whose parts some paths are, as `in_order` takes them; where they are no parts, the first path."""
    first = in_order(paths)[0]
    part = SHARD_NAME.fullmatch(first)
    return f'{part[1]}.h5' if part else first


def open_embeddings(paths):
    """Open the embedding file that a flag names, or several as one; see `in_order`.

    Returns: `Embeddings` or `Shards`.
    """
    paths = in_order(paths)
    return Embeddings(paths[0]) if len(paths) == 1 else Shards(paths)


class StoredFids:
    """File ids of an open embedding file, which are read when they are asked for: for galleries of millions of images.

    Like an object array of str [N], as far as that is indexed, sliced and iterated.
    """

    def __init__(self, embeddings, rows):
        """Takes open `Embeddings` and a range of their rows."""
        self.embeddings = embeddings
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return StoredFids(self.embeddings, self.rows[index])
        rows = np.arange(self.rows.start, self.rows.stop, self.rows.step)[index]
        first = rows.min(initial=len(self.embeddings))
        return self.embeddings.fids_of_rows(first, rows.max(initial=0) + 1)[rows - first]

    def __iter__(self):
        for start in range(0, len(self), BLOCK):
            yield from self[np.arange(start, min(start + BLOCK, len(self)))]


def _check_fixed_length(name, dtype):
    # Texts of any length lie in a heap of their own, in which HDF5 runs in circles when it is damaged.
    if dtype.kind != 'S':
        raise ValueError(f'"{name}" is {dtype} where text of a fixed length is expected')


def _fixed_length(texts):
    """Strings as an array of UTF-8 texts of one length, with the HDF5 type that says so."""
    encoded = np.array([text.encode() for text in texts])
    return encoded.astype(h5py.string_dtype('utf-8', max(1, encoded.itemsize)))


def is_embeddings(path):
    """Whether a file is an embedding file, or a damaged one. Raises OSError where it is no HDF5 file."""
    with h5py.File(path, 'r', locking=False) as file:
        return 'emb' in file or 'embs' in file


def is_made_of(path, dataset, dim, augmentation_types, parameters):
    """Whether a file is one that an `EmbeddingWriter` with these arguments writes, be it finished or not."""
    with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError, TypeError):
        with h5py.File(path, 'r', locking=False) as file:
            variants = file['augmentation_types'].asstr()[()].tolist() if augmentation_types else []
            return (json.loads(file.attrs['parameters']) == json.loads(json.dumps(parameters))
                    and variants == list(augmentation_types) and file['emb'].shape == (len(dataset), dim)
                    and np.array_equal(file['fids'].asstr()[()], dataset.fids))
    return False


def unfinished(path):
    """The file that an interrupted `EmbeddingWriter` of `path` leaves."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, f'.{name}.partial')


def open_with_dataset(paths, dataset):
    """Open an embedding file, or several as one (see `in_order`), and check it against its dataset.

    Returns: (embeddings, dataset), the dataset reduced to one row a tracklet where the file holds pooled tracklets.
    """
    embeddings = open_embeddings(paths)
    try:
        if embeddings.pooled:
            if dataset.tracklets is None:
                raise InputError(f'{embeddings.path} has one row a tracklet, but {dataset.path} has no tracklet column.')
            dataset = dataset.first_frames()
        embeddings.check_matches(dataset)
    except InputError:
        embeddings.close()
        raise
    return embeddings, dataset


def open_gallery(paths, dataset_path):
    """As `open_with_dataset`, for millions of images: their file ids stay in the file, but for files of the original,
    which have none, and for pooled tracklets.

    Args:
        paths: of the embedding file, or of several.
        dataset_path: of the csv file.
    """
    embeddings = open_embeddings(paths)
    pids = []

    def blocks():
        for block_pids, block_fids, *_ in read_blocks(dataset_path):
            pids.append(np.array(block_pids, object))
            yield block_fids

    if embeddings.pooled or not embeddings.has_fids:
        embeddings.close()
        return open_with_dataset(paths, load_dataset(dataset_path, np.dtypes.StringDType()))
    try:
        embeddings.check_fids(blocks(), dataset_path)
    except InputError:
        embeddings.close()
        raise
    return embeddings, Dataset(str(dataset_path), np.concatenate(pids), StoredFids(embeddings, range(len(embeddings))))


def save_embeddings(path, dataset, emb, parameters=None):
    """Write a whole embedding file at once.

    Args:
        path: of the `.h5` file.
        dataset: the `Dataset` of the rows.
        emb: [N, D].
        parameters: JSON-serialisable dict that tells how the embeddings came about.
    """
    with EmbeddingWriter(path, dataset, emb.shape[1], (), parameters or {}) as writer:
        writer.append(emb)


class EmbeddingWriter:
    """Writes an embedding file a few rows at a time into a hidden temporary file, then renames it.

    Use it as a context manager. When the block ends well the file is there; when it fails, the rows so far are kept
    in the temporary file, and a later writer with `resume` and the same parameters continues behind them.

    HDF5 makes the file; the rows are then written to their place in it without HDF5, which on a full disk loses rows
    without an error. The temporary file ends in the number of rows that are there, COUNT_BYTES long.

    Attributes:
        rows_done: how many rows are written already (not 0 only with `resume`).
    """

    def __init__(self, path, dataset, dim, augmentation_types, parameters, provenance=None, resume=False,
                 pooled=False, more=None):
        """
        Args:
            path: of the `.h5` file.
            dataset: the `Dataset` of the rows.
            dim: D.
            augmentation_types: names of the variants of each image, or nothing where they are not known.
            parameters: JSON-serialisable dict; rows written under other parameters are never continued.
            provenance: JSON-serialisable dict.
            resume: continue an interrupted writer's rows.
            pooled: the rows are tracklets.
            more: arrays to be kept beside the rows, {name: array}, or None.
        """
        self.path = os.path.abspath(path)
        self.temporary = unfinished(path)
        # Not truncated before it is known that nobody else writes there.
        self._file = open(os.open(self.temporary, os.O_RDWR | os.O_CREAT, 0o666), 'r+b', buffering=0)
        if not lock(self._file):
            self._file.close()
            raise InputError(f'Another process is writing {path}. Wait for it or stop it.')
        self.rows_done = 0
        if resume:
            self.rows_done = self._rows_of_interrupted(dataset, dim, augmentation_types, parameters)
        if not self.rows_done:
            try:
                self._create(dataset, dim, augmentation_types, parameters, provenance, pooled, more or {})
            except OSError as error:
                os.remove(self.temporary)
                error.filename = error.filename or path
                raise
        with h5py.File(self.temporary, 'r', locking=False) as file:
            self._places = {name: (file[name].id.get_offset(), file[name].shape)
                            for name in ('emb', 'emb_aug') if name in file}

    def _rows_of_interrupted(self, dataset, dim, augmentation_types, parameters):
        """How many rows an interrupted writer of the same dataset and parameters has left; 0 where there is none."""
        if not is_made_of(self.temporary, dataset, dim, augmentation_types, parameters):
            return 0
        self._end = os.path.getsize(self.temporary) - COUNT_BYTES
        rows = int.from_bytes(os.pread(self._file.fileno(), COUNT_BYTES, self._end), 'little')
        return rows if rows <= len(dataset) else 0

    def _create(self, dataset, dim, augmentation_types, parameters, provenance, pooled, more):
        variants = len(augmentation_types) if len(augmentation_types) > 1 else 0
        # A disk without room for all of the rows says so now, and not after hours.
        reserve(self._file, (1 + variants) * len(dataset) * dim * 4 + (1 << 16))
        with h5py.File(self.temporary, 'w', locking=False) as file:
            # Contiguous arrays of the final size, whose place in the file is known from here on.
            early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            file.create_dataset('emb', (len(dataset), dim), '<f4', dcpl=early)
            file['embs'] = file['emb']
            if variants:
                file.create_dataset('emb_aug', (variants, len(dataset), dim), '<f4', dcpl=early)
            if augmentation_types:
                file['augmentation_types'] = np.array(augmentation_types, dtype='S')
            file['fids'] = _fixed_length(dataset.fids)
            if pooled:
                file['tracklets'] = _fixed_length(dataset.tracklets)
            for name, array in more.items():
                file[name] = array
            file.attrs['parameters'] = _fixed_length([json.dumps(parameters, sort_keys=True)])[0]
            file.attrs['provenance'] = _fixed_length([json.dumps(provenance or {}, sort_keys=True)])[0]
        self._end = os.path.getsize(self.temporary)
        reserve(self._file, self._end + COUNT_BYTES)

    def append(self, emb, emb_aug=None):
        """Write the next rows.

        Args:
            emb: [B, D], the (aggregated) embeddings.
            emb_aug: [A, B, D], those of the variants; kept where there are several.
        """
        self._write('emb', (), emb)
        if 'emb_aug' in self._places:
            for variant, embs in enumerate(emb_aug):
                self._write('emb_aug', (variant,), embs)
        # The count reaches the disk after the rows, so that it never stands for rows that are not there.
        os.fsync(self._file.fileno())
        self.rows_done += len(emb)
        write_at(self._file, self._end, self.rows_done.to_bytes(COUNT_BYTES, 'little'))

    def _write(self, name, variant, embs):
        start, shape = self._places[name]
        if self.rows_done + len(embs) > shape[-2] or embs.shape[1:] != shape[-1:]:
            raise ValueError(f'rows of shape {embs.shape} behind row {self.rows_done} of {shape}')
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

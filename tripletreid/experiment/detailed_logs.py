"""Write and read the detailed logs of a run: embeddings, losses and file ids of every batch, as `.npy` arrays."""
import io
import math
import os

import numpy as np

from tripletreid.errors import InputError
from tripletreid.files import write_at

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


class RowFile:
    """An `.npy` array with a row per iteration; a row is overwritten when its iteration is run again.

    The file has its final size from the start and is sparse: rows that were not reached are zeros. An existing file grows
    for a longer run and is never cut. A memory map, as of NumPy's open_memmap, would crash the process on a full disk.
    """

    def __init__(self, path, shape, dtype):
        """Raises InputError when there is such a file already, with rows of another form."""
        dtype = np.dtype(dtype)
        self._file = open(path, 'r+b' if os.path.exists(path) else 'w+b', buffering=0)
        if self._file.read(6) == np.lib.format.MAGIC_PREFIX:
            rows, *form = _held(self._file)
            if form != [shape[1:], dtype]:
                raise InputError(f'{path} does not hold rows of {"×".join(map(str, shape[1:])) or 1} {dtype}, as this run '
                                 f'would: its training set has changed. Use the original one, or move the log away.')
            shape = (max(rows, shape[0]), *shape[1:])
        # NumPy leaves room in the header for any number of rows.
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, {
            'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': shape})
        header = header.getvalue()
        self._file.seek(0)
        self._file.write(header)
        self._start = len(header)
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self._dtype = dtype
        self._file.truncate(self._start + shape[0] * self._row_bytes)

    def write(self, row, values):
        values = np.ascontiguousarray(values, self._dtype).tobytes()
        write_at(self._file, self._start + row * self._row_bytes, values)

    def flush(self):
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()


def _held(file):
    """Return rows, shape of a row and dtype of an open `.npy` file; three times None if its header is damaged."""
    try:
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        return shape[0], shape[1:], dtype
    except (ValueError, IndexError):
        return None, None, None


class DetailedLogs:
    """Embeddings, losses and file ids of every batch, as arrays that `np.load(path, mmap_mode='r')` opens.

    `log_embs.npy` float32 [iterations, B, D], `log_losses.npy` float32 [iterations, B], `log_fids.npy` UTF-8 bytes
    [iterations, B].
    """

    def __init__(self, args, fids):
        longest = max(len(fid.encode()) for fid in fids)
        batches = (args.train_iterations, args.batch_p * args.batch_k)
        files = {
            'embs': ((*batches, args.embedding_dim), np.float32),
            'losses': (batches, np.float32),
            'fids': ((args.train_iterations, batches[1] * args.frames_per_tracklet), f'S{longest}'),
        }
        self._files = {name: RowFile(os.path.join(args.experiment_root, f'log_{name}.npy'), shape, dtype)
                       for name, (shape, dtype) in files.items()}

    def write(self, row, embs, losses, fids):
        self._files['embs'].write(row, embs)
        self._files['losses'].write(row, losses)
        self._files['fids'].write(row, [fid.encode() for fid in fids])

    def flush(self):
        for file in self._files.values():
            file.flush()

    def close(self):
        for file in self._files.values():
            file.close()


def read_loss_quantiles(root, bins=200):
    """Return quantiles of the losses in a run's batches, from its detailed logs.

    Returns: steps [T], the ends of T spans of iterations, and the quantiles of all losses within them [T, 7], in the
        order of QUANTILES; None where the run kept no detailed logs or has not begun.

    Raises:
        InputError: the logs are not arrays of one number of iterations.
    """
    losses_path, fids_path = (os.path.join(root, f'log_{name}.npy') for name in ('losses', 'fids'))
    if not os.path.isfile(losses_path) or not os.path.isfile(fids_path):
        return None
    try:
        losses, fids = (np.load(path, mmap_mode='r', allow_pickle=False) for path in (losses_path, fids_path))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f'{losses_path} or {fids_path} is damaged ({error}).') from error
    are_logs = losses.ndim == fids.ndim == 2 and losses.size and fids.size and fids.dtype.kind == 'S'
    if not are_logs or len(losses) != len(fids):
        raise InputError(f'{losses_path} and {fids_path} are not the logs of one run: {losses.dtype} {losses.shape} '
                         f'and {fids.dtype} {fids.shape}.')
    # Rows of iterations that were not reached are zeros; so may the losses of others be, but not their file names.
    # A run that the original began has none of the iterations before it was resumed.
    done = np.flatnonzero(fids[:, 0] != b'')
    if not done.size:
        return None
    first, last = done[0], done[-1] + 1
    ends = np.unique(np.linspace(first, last, min(bins, last - first) + 1).astype(int))
    spans = [losses[start:stop] for start, stop in zip(ends, ends[1:])]
    return ends[1:], np.array([np.quantile(span, QUANTILES) for span in spans])

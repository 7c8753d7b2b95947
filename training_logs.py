"""What a training run logged: scalars over time, and how its losses were distributed."""
import glob
import os
import pathlib
import re
import struct

import numpy as np

from errors import InputError

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
NUMBER = r' *(-?\d+\.\d+)'
ITERATION = re.compile(fr'iter: *(\d{{1,18}}), loss min\|avg\|max:{NUMBER}\|{NUMBER}\|{NUMBER}, '
                       fr'batch-p@(\d+):{NUMBER}%.*\({NUMBER}s/it\)')


def read_scalars(root):
    """The scalars of a run, {tag: {step: value}}, from its TensorBoard events; from its train.log without them.

    Raises:
        InputError: no such folder, or neither of them in it.
    """
    if not os.path.isdir(root):
        raise InputError(f'There is no experiment root {root}.')
    scalars = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(root), '*tfevents*'))):
        _add_events(scalars, path)
    log = os.path.join(root, 'train.log')
    if not scalars and os.path.isfile(log):
        scalars = _scalars_of_log(log)
    if not scalars:
        raise InputError(f'{root} has no training curves: neither TensorBoard events nor iterations in a train.log.')
    return scalars


def _add_events(scalars, path):
    """Add the scalars of an event file, up to a record that is damaged or still being written.

    TensorBoard's own reader would load TensorFlow, which takes seconds. A record is: length of the event (8 bytes),
    checksum (4), event, checksum (4).
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.util.tensor_util import make_ndarray
    data = memoryview(pathlib.Path(path).read_bytes())
    start = 0
    while start + 12 <= len(data):
        length, = struct.unpack_from('<Q', data, start)
        stop = start + 12 + length
        try:
            event = Event.FromString(data[start + 12:stop])
        except DecodeError:
            return
        start = stop + 4
        if event.session_log.status == SessionLog.START:
            # A run was resumed at this step: what an earlier file has from there on did not become part of it.
            for values in scalars.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            if value.HasField('simple_value'):  # TensorFlow 1
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            elif value.metadata.plugin_data.plugin_name == 'scalars':
                scalars.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))


def _scalars_of_log(path):
    scalars = {}
    with open(path, encoding='utf-8', errors='replace') as file:
        for match in filter(None, map(ITERATION.search, file)):
            step, _, loss, _, k, precision, seconds = match.groups()
            found = {'loss': float(loss), f'batch_prec_at_{k}': float(precision) / 100, 'secs_per_iter': float(seconds)}
            for tag, value in found.items():
                scalars.setdefault(tag, {})[int(step)] = value
    return scalars


def read_loss_quantiles(root, bins=200):
    """Quantiles of the losses in a run's batches, from its detailed logs.

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

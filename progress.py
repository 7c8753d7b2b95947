"""What a run tells about itself while it goes: the line per iteration, TensorBoard, detailed logs, collapse."""
import collections
import concurrent.futures
import datetime
import glob
import io
import math
import os
import re
import socket
import struct
import time

import numpy as np

from errors import InputError
from experiment import LOG_FILE
from files import tensorflow_os_errors, write_at, written_whole


def iteration_line(step, losses, precision, k, eta_seconds, seconds):
    """The log line of one iteration, in the form of the original.

    Args:
        step: number of finished iterations.
        losses: [B].
        precision: batch precision at k, a share.
        k: K - 1.
        eta_seconds: seconds until the run ends.
        seconds: duration of the iteration.
    """
    eta = datetime.timedelta(seconds=int(eta_seconds))
    return (f'iter:{step:6d}, loss min|avg|max: {losses.min():.3f}|{losses.mean():.3f}|{losses.max():6.3f}, '
            f'batch-p@{k}: {precision:.2%}, ETA: {eta} ({seconds:.2f}s/it)')


def forget_iterations_after(root, step):
    """Drop the lines of `train.log` that tell of iterations after `step`: they are about to be run again."""
    path = os.path.join(root, LOG_FILE)
    if not os.path.isfile(path):
        return
    iteration = re.compile(r'iter: *(\d+),')
    with open(path, encoding='utf-8', errors='replace') as file:
        lines = file.readlines()
    found = [iteration.search(line) for line in lines]
    # A line that was cut off gets its end.
    kept = [line.rstrip('\n') + '\n' for line, match in zip(lines, found) if match is None or int(match[1]) <= step]
    if kept != lines:
        with written_whole(path) as temporary:
            with open(temporary, 'w', encoding='utf-8') as file:
                file.writelines(kept)


def forget_events_after(root, step):
    """Cut event files before the first event of a step after `step`, or the first that was not written to its end.

    TensorBoard would void such events when it meets the start of another run; other readers count them twice.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    for path in glob.glob(os.path.join(glob.escape(root), '*tfevents*')):
        with open(path, 'r+b') as file:
            kept = 0
            # A record: length of the event (8 bytes), checksum (4), event, checksum (4).
            while len(head := file.read(12)) == 12:
                length, = struct.unpack_from('<Q', head)
                try:
                    event = Event.FromString(file.read(length))
                except (DecodeError, OverflowError, MemoryError):
                    break
                if event.step > step or len(file.read(4)) < 4:
                    break
                kept = file.tell()
            file.truncate(kept)


class TensorBoard:
    """Writes scalars and histograms to an event file in the experiment root.

    TensorBoard's own writer works in a thread, which answers a full disk with a traceback of its own.
    """

    def __init__(self, root, first_step):
        """
        Args:
            root: experiment root.
            first_step: events of later steps, left by a run that was killed, are void.
        """
        import tensorflow as tf
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        self._event = Event
        self._path = os.path.join(root, f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.'
                                        f'{os.getpid()}')
        with tensorflow_os_errors(self._path):
            self._writer = tf.io.TFRecordWriter(self._path)
        self._add(Event(wall_time=time.time(), file_version='brain.Event:2'))
        # Iterations count from 1 in the events. TensorBoard drops those of this step, too.
        self._add(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step, scalars, histograms):
        """Add dicts {tag: number} and {tag: array} at a step."""
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        event = self._event(step=step, wall_time=time.time())
        for tag, number in scalars.items():
            event.summary.value.extend(scalar_pb(tag, np.float32(number)).value)
        for tag, values in histograms.items():
            event.summary.value.extend(histogram_pb(tag, values).value)
        self._add(event)

    def _add(self, event):
        with tensorflow_os_errors(self._path):
            self._writer.write(event.SerializeToString())

    def flush(self):
        with tensorflow_os_errors(self._path):
            self._writer.flush()

    def close(self):
        with tensorflow_os_errors(self._path):
            self._writer.close()


class RowFile:
    """An `.npy` array with a row per iteration; a row is overwritten when its iteration is run again.

    It has its final size from the start, as a sparse file: rows not reached are zeros.
    """

    def __init__(self, path, shape, dtype):
        """Raises InputError when there is such a file already, with rows of another form."""
        dtype = np.dtype(dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_2_0(header, {
            'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': shape})
        header = header.getvalue()
        self._file = open(path, 'r+b' if os.path.exists(path) else 'w+b', buffering=0)
        held = self._file.read(len(header))
        if held.startswith(np.lib.format.MAGIC_PREFIX) and held != header:
            raise InputError(f'{path} does not hold {"×".join(map(str, shape))} of {dtype}, as this run would: its '
                             f'training set is not what it was. Go on with that of the start, or move the log away.')
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


class Reporter:
    """Tells of each iteration in the log, in TensorBoard and, where asked for, in the detailed logs.

    TensorBoard's histograms take milliseconds. They are made in a thread of their own while the next iteration runs.
    """

    def __init__(self, args, log, first_step, fids, pid_numbers):
        """
        Args:
            args: of `train.py`.
            log: the run's logger.
            first_step: the step that the run starts or goes on with.
            fids: file ids of the training set [N].
            pid_numbers: numbers of their identities, int32 [N].
        """
        forget_iterations_after(args.experiment_root, first_step)
        forget_events_after(args.experiment_root, first_step)
        self._args = args
        self._log = log
        self._fids = fids
        self._pid_numbers = pid_numbers
        self._board = TensorBoard(args.experiment_root, first_step)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._board_is_told = self._thread.submit(lambda: None)
        self._details = DetailedLogs(args, fids) if args.detailed_logs else None
        self._watch = CollapseWatch(args.margin)

    def iteration(self, step, rows, result, learning_rate, seconds):
        """Tell of one iteration.

        Args:
            step: 0-based.
            rows: of the batch's images in the training set, int64 [B].
            result: what the training step returned, a dict of NumPy arrays.
            learning_rate: float.
            seconds: duration of the iteration.
        """
        args, k = self._args, self._args.batch_k - 1
        eta = seconds * (args.train_iterations - step - 1)
        precision = result['batch_prec_at_k']
        line = iteration_line(step + 1, result['losses'], precision, k, eta, seconds)
        scalars = {'loss': result['loss'], 'batch_top1': result['batch_top1'], f'batch_prec_at_{k}': precision,
                   'active_count': result['active_count'], 'learning_rate': learning_rate, 'secs_per_iter': seconds}
        if args.xent_weight:
            line += f', cross-entropy: {result["cross_entropy"]:.3f}'
            scalars['cross_entropy'] = result['cross_entropy']
        self._log.info(line)
        self._board_is_told.result()  # Raises what went wrong with the last iteration.
        self._board_is_told = self._thread.submit(self._tell_board, step, scalars, rows, result)
        if self._details:
            self._details.write(step, result['emb'], result['losses'], self._fids[rows])
        warning = self._watch.warning(result['dists'].mean(), result['loss'])
        if warning:
            self._log.warning(warning)

    def validation(self, step, result):
        """Tell of a validation after `step` iterations: `result` is a dict of mAP and top1."""
        self._board_is_told.result()
        self._log.info(f'iter:{step:6d}, validation mAP: {result["mAP"]:.2%}, top-1: {result["top1"]:.2%}')
        self._board.write(step, {'validation_mAP': result['mAP'], 'validation_top1': result['top1']}, {})

    def _tell_board(self, step, scalars, rows, result):
        with_histograms = step % self._args.summary_frequency == 0
        self._board.write(step + 1, scalars, self._histograms(rows, result) if with_histograms else {})

    def _histograms(self, rows, result):
        pids, dists = self._pid_numbers[rows[::self._args.frames_per_tracklet]], result['dists']
        same = pids[:, None] == pids[None]
        positive = same & ~np.eye(len(pids), dtype=bool)
        return {'loss_distribution': result['losses'], 'embedding_dists': dists,
                'embedding_pos_dists': dists[positive], 'embedding_neg_dists': dists[~same],
                'embedding_lengths': np.linalg.norm(result['emb_raw'], axis=1)}

    def flush(self):
        """Hand all that was told to the operating system, and detailed logs to the disk."""
        self._board_is_told.result()
        self._board.flush()
        if self._details:
            self._details.flush()

    def close(self):
        self._thread.shutdown()
        self._board.close()
        if self._details:
            self._details.close()


class CollapseWatch:
    """Notices when all embeddings become one point while the loss sits at the margin (ln 2 for the soft one).

    Then the distances of positives and negatives are equal, and the gradient that would part them vanishes.
    """
    steps = 100
    share_of_start = 0.02
    loss_tolerance = 0.02

    def __init__(self, margin):
        self.stuck_loss = {'soft': float(np.log(2)), 'none': 0.0}.get(margin, margin)
        self._start = collections.deque(maxlen=5)
        self._steps = 0
        self._warned = False

    def warning(self, mean_distance, loss):
        """Watch one step: mean distance within the batch, mean loss. Returns the warning's text, once, or None."""
        if len(self._start) < self._start.maxlen:
            self._start.append(mean_distance)
            return None
        small = mean_distance < self.share_of_start * max(self._start)
        stuck = abs(loss - self.stuck_loss) < self.loss_tolerance * max(1.0, abs(self.stuck_loss))
        self._steps = self._steps + 1 if small and stuck else 0
        if self._warned or self._steps < self.steps:
            return None
        self._warned = True
        return (f'The embeddings have collapsed: for {self.steps} iterations all images of a batch lie in nearly one '
                f'point (mean distance {mean_distance:.2g}, at the start {max(self._start):.2g}) and the loss sits at '
                f'{self.stuck_loss:.3f}. Training rarely recovers from this. Try a lower --learning_rate, another '
                f'--margin, a larger --batch_p, or pre-trained weights (--initial_checkpoint).')

"""Write, cut and read TensorBoard's event files: scalars and histograms."""
import glob
import os
import pathlib
import re
import socket
import struct
import time

import numpy as np

from tripletreid.errors import InputError
from tripletreid.experiment.train_log import read_iterations
from tripletreid.files import tensorflow_os_errors

VALIDATION_TAG = 'validation_mAP'


class TensorBoard:
    """A writer of scalars and histograms to an event file in the experiment root.

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
        self._path = os.path.join(root, f'events.out.tfevents.{_time_after_all(root):010d}.{socket.gethostname()}.'
                                        f'{os.getpid()}')
        with tensorflow_os_errors(self._path):
            self._writer = tf.io.TFRecordWriter(self._path)
        self._add(Event(wall_time=time.time(), file_version='brain.Event:2'))
        # Iterations count from 1 in the events. TensorBoard drops the events of this step, too.
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


def _time_after_all(root):
    """Return the time in seconds, but later than the time in the name of any event file in a folder.

    TensorBoard reads the files in the order of their names. After the clock was set back it would ignore a new file.
    """
    names = map(os.path.basename, glob.glob(os.path.join(glob.escape(root), '*tfevents*')))
    times = [int(found[1]) for found in (re.search(r'tfevents\.(\d+)', name) for name in names) if found]
    return max(int(time.time()), max(times, default=0) + 1)


def forget_events_after(root, step):
    """Cut event files before the first event of a step after `step`, or the first that was not written to its end.

    TensorBoard would void such events when it meets the start of another run; other readers count them twice.

    Returns: steps of the validations that remain, a set.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    validated = set()
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
                if any(value.tag == VALIDATION_TAG for value in event.summary.value):
                    validated.add(event.step)
            file.truncate(kept)
    return validated


def read_scalars(root):
    """Return the scalars of a run, {tag: {step: value}}, from its TensorBoard events; from its train.log without them.

    Raises:
        InputError: no such folder, or neither of them in it.
    """
    if not os.path.isdir(root):
        raise InputError(f'{root} is a file, not an experiment root.' if os.path.exists(root) else
                         f'There is no experiment root {root}.')
    scalars = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(root), '*tfevents*'))):
        _add_events(scalars, path)
    scalars = scalars or read_iterations(root)
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
            # A run was resumed at this step: later events of earlier files did not become part of it.
            for values in scalars.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            if value.HasField('simple_value'):  # TensorFlow 1
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
            elif value.metadata.plugin_data.plugin_name == 'scalars':
                scalars.setdefault(value.tag, {})[event.step] = float(make_ndarray(value.tensor))

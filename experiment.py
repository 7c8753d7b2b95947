"""The experiment root: who may write to it, its log, its provenance, and how a run is interrupted."""
import contextlib
import datetime
import fcntl
import json
import logging
import os
import signal
import socket
import sys

import provenance
from errors import InputError
from files import write_json

LOG_FILE = 'train.log'
PROVENANCE_FILE = 'provenance.json'
LOCK_FILE = '.lock'


def create(root):
    """Make the folder of a new experiment. Raises InputError when it holds anything already."""
    if os.path.exists(root) and not os.path.isdir(root):
        raise InputError(f'The experiment root {root} is a file.')
    if os.path.isdir(root) and os.listdir(root):
        raise InputError(f'The experiment root {root} is not empty. To continue that run add --resume.')
    os.makedirs(root, exist_ok=True)


@contextlib.contextmanager
def locked(root):
    """Hold the experiment root for this process. Raises InputError while another run holds it.

    The operating system drops the lock with the process, so one that was killed leaves no harm on the same host.
    Between hosts only the file's content tells.
    """
    path = os.path.join(root, LOCK_FILE)
    host = socket.gethostname()
    with open(path, 'a+', encoding='utf-8') as file:
        file.seek(0)
        owner = file.read(1000).strip()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f'Another run works in {root} ({owner}). Wait for it or stop it.') from error
        if owner and not owner.startswith(f'host {host} '):
            raise InputError(f'A run on another host works in {root} ({owner}). If it is dead, remove {path}.')
        file.truncate(0)
        file.write(f'host {host} process {os.getpid()}\n')
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)


class _ColouredFormatter(logging.Formatter):
    """Warnings yellow and errors red, on a terminal."""
    colours = {logging.WARNING: '\033[33m', logging.ERROR: '\033[31m'}

    def format(self, record):
        colour = self.colours.get(record.levelno)
        text = super().format(record)
        return f'{colour}{text}\033[0m' if colour and sys.stderr.isatty() else text


def open_log(root):
    """The logger of a run: standard error, and `train.log` in the root, which is appended to."""
    form = '%(asctime)s [%(levelname)s] %(name)s: %(message)s'
    to_file = logging.FileHandler(os.path.join(root, LOG_FILE), encoding='utf-8')
    to_file.setFormatter(logging.Formatter(form))
    to_screen = logging.StreamHandler()
    to_screen.setFormatter(_ColouredFormatter(form))
    log = logging.getLogger('train')
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [to_file, to_screen]
    return log


def record_start(root, args, dataset_files):
    """Append what it takes to trace a number of this run later to `provenance.json`, a list with an entry a start."""
    path = os.path.join(root, PROVENANCE_FILE)
    starts = []
    if os.path.isfile(path):
        with contextlib.suppress(ValueError), open(path, encoding='utf-8') as file:
            starts = json.load(file)
    starts.append({
        'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'command': sys.argv,
        'arguments': vars(args),
        'versions': provenance.versions(),
        'sha256': {file: provenance.file_hash(file) for file in dataset_files},
    })
    write_json(path, starts)


class Interruption:
    """SIGINT and SIGTERM ask the run to stop after the current iteration; a second one ends the process at once.

    Attributes:
        requested: name of the signal that came, or None.
    """

    def __init__(self):
        self.requested = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, _):
        self.requested = signal.Signals(number).name
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_DFL)

"""The experiment root: who may write to it, its log, its provenance, and how a run is interrupted."""
import contextlib
import datetime
import json
import logging.handlers
import os
import signal
import socket
import sys
import threading
import time

import arguments
import provenance
from errors import InputError
from files import left_unfinished, lock, write_json

LOG_FILE = 'train.log'
PROVENANCE_FILE = 'provenance.json'
BROKEN_IMAGES_FILE = 'broken_images.csv'
LOCK_FILE = '.lock'
SILENCE_OF_THE_DEAD = 1800  # seconds


def create(root):
    """Make the folder of a new experiment. Raises InputError when it holds anything already."""
    if os.path.exists(root) and not os.path.isdir(root):
        raise InputError(f'The experiment root {root} is a file.')
    # A lock and half an args.json are what a run leaves that was killed before it had written that.
    if os.path.isdir(root) and not set(os.listdir(root)) <= {LOCK_FILE, *left_unfinished(root, arguments.FILE)}:
        raise InputError(f'The experiment root {root} is not empty. To continue that run add --resume.')
    os.makedirs(root, exist_ok=True)


@contextlib.contextmanager
def locked(root):
    """Hold the experiment root for this process. Raises InputError while another run holds it.

    The operating system drops the lock with the process, so one that was killed leaves no harm on the same host.
    Between hosts not every file system knows of the lock; there the file's content tells, and a run whose log has not
    grown for half an hour counts as dead.
    """
    path = os.path.join(root, LOCK_FILE)
    host = socket.gethostname()
    with open(path, 'a+', encoding='utf-8') as file:
        file.seek(0)
        owner = file.read(1000).strip()
        if not lock(file):
            raise InputError(f'Another run works in {root} ({owner}). Wait for it or stop it.')
        if owner and not owner.startswith(f'host {host} ') and _seconds_since_log(root) < SILENCE_OF_THE_DEAD:
            raise InputError(f'A run on another host works in {root} ({owner}). If it is dead, remove {path}.')
        file.truncate(0)
        file.write(f'host {host} process {os.getpid()}\n')
        file.flush()
        try:
            yield
        finally:
            # Emptied, not removed: another process may have opened this very file already.
            with contextlib.suppress(OSError):
                file.truncate(0)


def _seconds_since_log(root):
    try:
        return time.time() - os.path.getmtime(os.path.join(root, LOG_FILE))
    except OSError:
        return 0


class _ColouredFormatter(logging.Formatter):
    """Warnings yellow and errors red, on a terminal."""
    colours = {logging.WARNING: '\033[33m', logging.ERROR: '\033[31m'}

    def format(self, record):
        colour = self.colours.get(record.levelno)
        text = super().format(record)
        return f'{colour}{text}\033[0m' if colour and sys.stderr.isatty() else text


class _LogFile(logging.handlers.WatchedFileHandler):
    """A log file that may be replaced while it is open. A line that cannot be written is an error, not a shrug."""

    def handleError(self, record):
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            error.filename = error.filename or self.baseFilename
        raise error


def open_log(root):
    """The logger of a run: standard error, and `train.log` in the root, which is appended to."""
    form = '%(asctime)s [%(levelname)s] %(name)s: %(message)s'
    to_file = _LogFile(os.path.join(root, LOG_FILE), encoding='utf-8')
    to_file.setFormatter(logging.Formatter(form))
    to_screen = logging.StreamHandler()
    to_screen.setFormatter(_ColouredFormatter(form))
    log = logging.getLogger('train')
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [to_file, to_screen]
    return log


def log_of_worker(number):
    """The logger of a worker that is not the chief: warnings and errors on standard error, no file."""
    to_screen = logging.StreamHandler()
    to_screen.setFormatter(_ColouredFormatter(f'%(asctime)s [%(levelname)s] worker {number}: %(message)s'))
    log = logging.getLogger('train')
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.handlers = [to_screen]
    return log


def record_start(root, args, dataset_files):
    """Append what it takes to trace a number of this run later to `provenance.json`, a list with an entry a start.

    Returns: those of the dataset files that are not what they were at the start before this one.
    """
    path = os.path.join(root, PROVENANCE_FILE)
    starts = []
    if os.path.isfile(path):
        with contextlib.suppress(ValueError, RecursionError), open(path, encoding='utf-8') as file:
            starts = json.load(file)
    starts = starts if isinstance(starts, list) else []
    hashes = {file: provenance.file_hash(file) for file in dataset_files}
    changed = [file for file in dataset_files if _hash_before(starts, file) not in (None, hashes[file])]
    starts.append({
        'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'command': sys.argv,
        'arguments': vars(args),
        'versions': provenance.versions(),
        'sha256': hashes,
    })
    write_json(path, starts)
    return changed


def _hash_before(starts, file):
    """The hash of a dataset file at the last start that is noted of it; None where none is."""
    try:
        return starts[-1]['sha256'][file]
    except (LookupError, TypeError):
        return None


def take_back_start(root):
    """Remove what a new run has left that could not start, so that it can be started again with other arguments."""
    for name in (arguments.FILE, LOG_FILE, PROVENANCE_FILE, BROKEN_IMAGES_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(root, name))


class Interruption:
    """SIGINT and SIGTERM ask the run to stop after the current iteration; a second one ends the process at once.

    Python runs signal handlers in the main thread, between two of its own instructions: during a long TensorFlow call,
    or one that hangs with a network drive, never. So the numbers of the signals go through a pipe, which the
    interpreter fills at once, to a thread that waits there.

    Attributes:
        requested: name of the signal that came, or None.
    """

    def __init__(self):
        self.requested = None
        self._signals, written_by_python = os.pipe()
        os.set_blocking(written_by_python, False)
        signal.set_wakeup_fd(written_by_python, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        self.take_signals()
        threading.Thread(target=self._wait, daemon=True).start()

    def take_signals(self):
        """To be called again when a library has taken a signal for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)

    def _wait(self):
        self.requested = signal.Signals(os.read(self._signals, 1)[0]).name
        os._exit(128 + os.read(self._signals, 1)[0])

"""The experiment root: its lock, the record of its starts, and the removal of an unstarted run."""
import contextlib
import datetime
import glob
import json
import os
import socket
import sys
import time

from tripletreid import provenance
from tripletreid.errors import InputError
from tripletreid.experiment import arguments
from tripletreid.experiment.train_log import LOG_FILE, read_iterations
from tripletreid.files import left_unfinished, lock, write_json

PROVENANCE_FILE = 'provenance.json'
BROKEN_IMAGES_FILE = 'broken_images.csv'
LOCK_FILE = '.lock'
SECONDS_UNTIL_DEAD = 1800  # seconds


def create(root):
    """Make the folder of a new experiment. Raises InputError if it is not empty."""
    check_new(root)
    os.makedirs(root, exist_ok=True)


def check_new(root):
    """Raise InputError if a new experiment cannot be made in a folder, because it is not empty."""
    if os.path.exists(root) and not os.path.isdir(root):
        raise InputError(f'The experiment root {root} is a file.')
    # A run that was killed before it had written args.json leaves a lock and an incomplete args.json.
    if os.path.isdir(root) and not set(os.listdir(root)) <= {LOCK_FILE, *left_unfinished(root, arguments.FILE)}:
        raise InputError(f'The experiment root {root} is not empty. To continue that run add --resume.')


@contextlib.contextmanager
def locked(root):
    """Hold the experiment root for this process. Raises InputError while another run holds it.

    The operating system drops the lock with the process, so a killed run does not block others on its host. Some file
    systems do not share locks between hosts; there the content of the file decides, and a run whose log has not grown for
    half an hour counts as dead.
    """
    path = os.path.join(root, LOCK_FILE)
    host = socket.gethostname()
    with open(path, 'a+', encoding='utf-8') as file:
        file.seek(0)
        owner = file.read(1000).strip()
        if not lock(file):
            raise InputError(f'Another run works in {root} ({owner}). Wait for it or stop it.')
        if owner and not owner.startswith(f'host {host} ') and _seconds_since_log(root) < SECONDS_UNTIL_DEAD:
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


def record_start(root, args, dataset_files):
    """Append versions and hashes, which trace a number of this run, to `provenance.json`, a list with an entry per start.

    Returns: the dataset files that have changed since the previous start.
    """
    path = os.path.join(root, PROVENANCE_FILE)
    starts = []
    if os.path.isfile(path):
        with contextlib.suppress(ValueError, RecursionError), open(path, encoding='utf-8') as file:
            starts = json.load(file)
    starts = starts if isinstance(starts, list) else []
    hashes = {file: provenance.file_hash(file) for file in dataset_files}
    changed = [file for file in hashes if _hash_before(starts, file) not in (None, hashes[file])]
    starts.append({
        'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'command': sys.argv,
        'arguments': arguments.as_stored(args),
        'versions': provenance.versions(),
        'sha256': hashes,
    })
    write_json(path, starts)
    return changed


def _hash_before(starts, file):
    """Return the recorded hash of a dataset file at the last start, or None."""
    try:
        return starts[-1]['sha256'][file]
    except (LookupError, TypeError):
        return None


def has_trained(root):
    """Return whether a run has finished an iteration, by its log and its checkpoints."""
    later = glob.glob(os.path.join(glob.escape(root), 'checkpoint-[1-9]*'))
    return bool(later or read_iterations(root))


def remove_unstarted_root(root):
    """Remove the files of a new run without a finished iteration, so that it can start again with other arguments."""
    for pattern in (arguments.FILE, LOG_FILE, PROVENANCE_FILE, BROKEN_IMAGES_FILE, 'checkpoint',
                    'checkpoint-0.*', '*tfevents*', 'log_*.npy'):
        for path in glob.glob(os.path.join(glob.escape(root), pattern)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

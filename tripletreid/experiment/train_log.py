"""train.log: write the log of a run, with a line per iteration, and read these lines."""
import datetime
import logging.handlers
import os
import re
import sys

from tripletreid.files import written_whole

LOG_FILE = 'train.log'
# The level of a validation's line, between a warning and the lines of the iterations that it would drown in.
VALIDATION = 25
logging.addLevelName(VALIDATION, 'VALIDATION')
# The line of an iteration, as `iteration_line` words it and `read_iterations` reads it.
NUMBER = r' *(-?\d+\.\d+)'
ITERATION = re.compile(fr'iter: *(\d{{1,18}}), loss min\|avg\|max:{NUMBER}\|{NUMBER}\|{NUMBER}, '
                       fr'batch-p@(\d+):{NUMBER}%.*\({NUMBER}s/it\)')


class _ColouredFormatter(logging.Formatter):
    """Warnings yellow, errors red and validations green, on a terminal."""
    colours = {logging.WARNING: '\033[33m', logging.ERROR: '\033[31m', VALIDATION: '\033[1;32m'}

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
    """Return the logger of a run: to standard error, and appending to `train.log` in the root."""
    form = '%(asctime)s [%(levelname)s] %(name)s: %(message)s'
    to_file = _LogFile(os.path.join(root, LOG_FILE), encoding='utf-8', errors='backslashreplace')
    to_file.setFormatter(logging.Formatter(form))
    to_screen = logging.StreamHandler()
    to_screen.setFormatter(_ColouredFormatter(form))
    log = logging.getLogger('train')
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [to_file, to_screen]
    return log


def log_of_worker(number):
    """Return the logger of a worker that is not the chief: warnings and errors on standard error, no file."""
    to_screen = logging.StreamHandler()
    to_screen.setFormatter(_ColouredFormatter(f'%(asctime)s [%(levelname)s] worker {number}: %(message)s'))
    log = logging.getLogger('train')
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.handlers = [to_screen]
    return log


def iteration_line(step, losses, precision, k, eta_seconds, seconds):
    """Return the log line of one iteration, in the form of the original.

    Args:
        step: number of finished iterations.
        losses: [B].
        precision: batch precision at k, a fraction.
        k: K - 1.
        eta_seconds: seconds until the run ends.
        seconds: duration of the iteration.
    """
    eta = datetime.timedelta(seconds=int(eta_seconds))
    return (f'iter:{step:6d}, loss min|avg|max: {losses.min():.3f}|{losses.mean():.3f}|{losses.max():6.3f}, '
            f'batch-p@{k}: {precision:.2%}, ETA: {eta} ({seconds:.2f}s/it)')


def forget_iterations_after(root, step):
    """Remove the lines of `train.log` of iterations after `step`, which are about to be run again."""
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


def read_iterations(root):
    """Return the scalars in the log of an experiment root, {tag: {step: value}}; empty without a log."""
    path, scalars = os.path.join(root, LOG_FILE), {}
    if not os.path.isfile(path):
        return scalars
    with open(path, encoding='utf-8', errors='replace') as file:
        for match in filter(None, map(ITERATION.search, file)):
            step, _, loss, _, k, precision, seconds = match.groups()
            found = {'loss': float(loss), f'batch_prec_at_{k}': float(precision) / 100, 'secs_per_iter': float(seconds)}
            for tag, value in found.items():
                scalars.setdefault(tag, {})[int(step)] = value
    return scalars

"""Tasks of the workers of tests/test_dask.py, which import this module."""
import os
import pathlib
import signal
import time

from tripletreid.errors import InputError


def square(number):
    return number ** 2


def kill_once(folder, number):
    """The square of a number; the first call of all kills its worker."""
    try:
        pathlib.Path(folder, 'killed').touch(exist_ok=False)
    except FileExistsError:
        return number ** 2
    os.kill(os.getpid(), signal.SIGKILL)


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error):
    raise error


def wait(folder, _):
    """Say that the work has begun, and never end."""
    pathlib.Path(folder, 'begun').touch()
    while True:
        time.sleep(0.1)


ERRORS = [(InputError('a.jpg cannot be read.'), 'a.jpg cannot be read.'), (MemoryError(), 'not enough memory'),
          (OSError(28, 'No space left on device', 'b.h5'), 'b.h5: No space left on device')]

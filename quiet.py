"""Importing TensorFlow without its start-up noise, unless the user asks for it by setting TF_CPP_MIN_LOG_LEVEL."""
import contextlib
import os
import sys


@contextlib.contextmanager
def tensorflow_import():
    """Import TensorFlow inside of this block, the first time in a process.

    The libraries write to file descriptor 2 before they look at any setting, so that is where they are silenced.
    """
    if 'TF_CPP_MIN_LOG_LEVEL' in os.environ:
        yield
        return
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

"""evaluate.py, whose processes of --workers never come to the end of their work.

    python tests/_endless_evaluation.py FOLDER FLAGS…

Each of them writes a file into FOLDER when it is at work; its name is the number of the process.
"""
import functools
import os
import pathlib
import sys
import time

import numpy as np

import evaluate
from tripletreid import exclusion
from tripletreid.errors import exit_with

PATIENCE = 300  # Seconds; a process that nobody ends would be left by a test that failed.


class EndlessExcluder:
    """An excluder that never finishes the search for the images that a query ignores."""

    def __init__(self, folder, gallery_fids):
        self.folder = folder

    def __call__(self, query_fids):
        pathlib.Path(self.folder, str(os.getpid())).touch()
        until = time.monotonic() + PATIENCE
        numbers = np.ones(1 << 20)
        while time.monotonic() < until:
            numbers.sum()
        raise TimeoutError('nobody ended this process')


if __name__ == '__main__':
    excluder = functools.partial(EndlessExcluder, sys.argv.pop(1))
    exclusion.load = lambda name: excluder
    exit_with(evaluate.main)

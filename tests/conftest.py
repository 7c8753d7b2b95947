"""Tests run from any folder and find the project's modules; scripts run as real processes, or by their `main`."""
import contextlib
import gc
import importlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# A shell that starts a command in the background has it ignore SIGINT, and so would all runs of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection():
    """Import without garbage collection, which would go through the million objects of TensorFlow over and over."""
    gc.disable()


def pytest_collection_modifyitems(items):
    """Sort the files of tests that take long before the others."""
    items.sort(key=lambda item: item.get_closest_marker('long') is None)


def pytest_collection_finish():
    """Collect garbage from now on, without the objects of all imported modules: they took a fifth of the tests' time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope='module')
def browser():
    from _browser import opened_browser
    with opened_browser() as opened:
        yield opened


def run_script(script, *arguments, timeout=600, **options):
    """Run one of the project's scripts as its user would; returns the finished process with its text output."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def run_main(script, *arguments):
    """Run a script as `run_script` does, but in this process, which saves its imports; returns the same.

    Warnings of Python are pytest's then, and are not in the text of standard error.
    """
    from tripletreid import errors
    main = importlib.import_module(script.removesuffix('.py')).main
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as problems:
        argv, sys.argv = sys.argv, [script, *map(str, arguments)]
        try:
            errors.exit_with(main)
        except SystemExit as ended:
            return subprocess.CompletedProcess(sys.argv, ended.code, output.getvalue(), problems.getvalue())
        finally:
            sys.argv = argv


def wait_until(condition, event, seconds=300):
    """Wait until `condition()` holds; fail the test with the name of the `event` if it does not within `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f'waited {seconds} s for {event}'
        time.sleep(0.01)


def assert_one_sentence(process, *parts, status=(1, 2)):
    """The process failed with a clear error: one `error: …` line that holds all `parts`, and no traceback."""
    statuses = status if isinstance(status, tuple) else (status,)
    assert process.returncode in statuses, (process.returncode, process.stdout, process.stderr)
    assert 'Traceback' not in process.stderr, process.stderr
    sentences = [line for line in process.stderr.splitlines() if 'error: ' in line]
    assert len(sentences) == 1, process.stderr
    for part in parts:
        assert str(part) in sentences[0], (part, sentences[0])

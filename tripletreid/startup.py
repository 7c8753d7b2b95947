"""Settle signals and standard streams, before a command imports anything of weight.

    if __name__ == '__main__':  # Before all other imports.
        from tripletreid import startup
        startup.settle()

This module imports only modules that Python itself has loaded at its start.
"""
import _signal  # Importing `signal` takes ten milliseconds, in which Ctrl+C would show a traceback.
import os
import sys


def settle():
    """Let signals end the command at once and quietly, and make writing to standard streams always possible.

    Ctrl+C has its default action, as in any program: Python's exception would show a traceback while modules are imported,
    or get lost in a destructor or in an `except:` of a library. Code with something to clean up uses `signals.undone`, and
    training handles signals itself. A command that was started with Ctrl+C ignored, as a shell does in the background,
    keeps ignoring it.

    A closed standard stream becomes /dev/null; otherwise libraries would write their messages into the next opened file.
    Characters that a terminal or a log lacks are written as \\xe4 or \\u2192.
    """
    if sys.platform == 'win32':
        sys.exit('error: this project runs on Linux and macOS, and on Windows inside of WSL.')
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    # In the order of their numbers, because a file gets the lowest free one.
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')

"""What a command does first of all, before it imports anything of weight: it settles signals and standard streams.

    if __name__ == '__main__':  # Before all other imports.
        from tripletreid import startup
        startup.settle()

So nothing is imported here that is not in memory when Python starts.
"""
import _signal  # The module `signal` itself takes ten milliseconds, in which Ctrl+C would show a traceback.
import os
import sys


def settle():
    """From here on signals end the command at once and quietly, and writing to a standard stream always works.

    Ctrl+C acts as it does on any program, by its default action: Python's own way, an exception, shows a traceback while
    modules are imported, or is lost in a destructor or in a library's `except:`. What has something to clean up says so
    by `signals.undone`, and training takes signals for itself. Who started the command with Ctrl+C ignored, as a shell
    does in the background, keeps that.

    A standard stream that is closed becomes /dev/null, or the next file to be opened would be what libraries write their
    messages to. Characters that a terminal or a log does not have are written as \\xe4 or \\u2192.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    # In the order of their numbers: the lowest free one is what a file gets.
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')

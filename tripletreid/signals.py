"""Remove unfinished files before a signal ends the process."""
import contextlib
import signal
import threading

ENDING = (signal.SIGINT, signal.SIGTERM)
_undone = []


@contextlib.contextmanager
def undone(undo):
    """Call `undo()` before SIGINT or SIGTERM ends the process, inside of this block.

    Signals that are ignored, raise an exception or are handled by a training stay so. No exception is raised here, because
    libraries swallow unexpected exceptions.

    Args:
        undo: function without arguments; an OSError of it is ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # Only there Python handles signals.
        yield
        return
    _undone.append(undo)
    _replace(signal.SIG_DFL, _undo_and_end)
    try:
        yield
    finally:
        _undone.remove(undo)
        if not _undone:
            _replace(_undo_and_end, signal.SIG_DFL)


@contextlib.contextmanager
def raised():
    """Let Ctrl+C raise KeyboardInterrupt inside of this block, for code that has to end other processes first."""
    would_end = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if would_end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if would_end:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def unheard_by_children():
    """Block Ctrl+C for processes that are started inside of this block, even while they import modules."""
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()  # Otherwise it starts with the first semaphore, and unblocks Ctrl+C then.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def end_the_process():
    """Restore the handlers of signals that a library has replaced."""
    for number in ENDING:
        signal.signal(number, _undo_and_end if _undone else signal.SIG_DFL)


def _replace(handler, other):
    for number in ENDING:
        if signal.getsignal(number) is handler:
            signal.signal(number, other)


def _undo_and_end(number, _):
    while _undone:
        with contextlib.suppress(OSError):
            _undone.pop()()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)

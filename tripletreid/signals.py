"""What is unfinished when a signal ends the process is removed before."""
import contextlib
import signal
import threading

ENDING = (signal.SIGINT, signal.SIGTERM)
_undone = []


@contextlib.contextmanager
def undone(undo):
    """Inside of this block `undo()` is called before SIGINT or SIGTERM ends the process.

    That is where they would end it: where they are ignored, raise an exception or are taken by a training, they still
    are and do. No exception is raised here, since libraries swallow what they do not expect.

    Args:
        undo: function without arguments; an OSError that it raises is nobody's concern any more.
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
    """Inside of this block Ctrl+C is an exception, KeyboardInterrupt: for what has other processes to end first."""
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
    """The processes that are started inside of this block never hear of Ctrl+C, not even while they import modules."""
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()  # Otherwise it starts with the first semaphore, and unblocks Ctrl+C then.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def end_the_process():
    """Take the signals back from a library that has taken them for itself."""
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

"""Interrupt a run by a signal, after the current iteration."""
import os
import signal
import threading

from tripletreid.signals import ENDING


class Interruption:
    """From here on SIGINT and SIGTERM ask the run to stop after the current iteration; a second one ends it at once.

    Python runs signal handlers in the main thread, between two of its own instructions: during a long TensorFlow call,
    or one that hangs with a network drive, never. So the numbers of the signals go through a pipe, which the
    interpreter fills at once, to a thread that waits there.

    Attributes:
        requested: name of the signal that came, or None.
    """

    def __init__(self):
        self.requested = None
        self._signals, written_by_python = os.pipe()
        os.set_blocking(written_by_python, False)
        signal.set_wakeup_fd(written_by_python, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        for number in ENDING:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self):
        self.requested = signal.Signals(os.read(self._signals, 1)[0]).name
        os._exit(128 + os.read(self._signals, 1)[0])

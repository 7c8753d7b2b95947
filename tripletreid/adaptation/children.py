"""The commands that a round consists of run as processes, which end with the adaptation and hear its signals."""
import ctypes
import os
import signal
import subprocess
import sys

from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.signals import ENDING

PR_SET_PDEATHSIG = 1


class Interrupted(Exception):
    """A signal asked the adaptation to stop; the message is the signal's name."""


class Children:
    """Runs one command at a time. SIGINT and SIGTERM are passed on to it, and it then stops at a point to resume from.

    A second signal is passed on as well, and ends the command at once.
    """

    def __init__(self):
        self._running, self._requested = None, None
        for number in ENDING:
            signal.signal(number, self._pass_on)

    def check(self):
        """Raise Interrupted where a signal has come."""
        if self._requested:
            raise Interrupted(self._requested)

    def run(self, script, *arguments):
        """Run one of the project's commands to its end.

        Raises:
            Interrupted: a signal came.
            InputError: the command failed; it has printed why.
        """
        self.check()
        command = [sys.executable, os.path.join(plugins.HERE, script), *map(str, arguments)]
        # A session of its own, so that Ctrl+C in a terminal reaches it once, from here.
        self._running = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent)
        self.check_running()
        status = self._running.wait()
        self._running = None
        self.check()
        if status:
            raise InputError(f'{script} ended with status {status}, see above. Resolve the problem, then continue with '
                             f'--resume.')

    def check_running(self):
        """Pass on a signal that came while the process was being started."""
        if self._requested:
            self._running.send_signal(signal.SIGTERM)

    def _pass_on(self, number, _):
        self._requested = signal.Signals(number).name
        if self._running is not None:
            self._running.send_signal(signal.SIGTERM)


def _end_with_parent():
    """Ask Linux to send SIGTERM to this process when its parent dies, however that ended."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

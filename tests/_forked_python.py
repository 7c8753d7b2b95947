"""A `python3` for shell scripts under test: the project's commands run in forks with TensorFlow imported.

    with forking_python(folder) as environment:
        subprocess.run(['sh', …], env=environment)
"""
import contextlib
import functools
import multiprocessing.connection
import os
import pathlib
import sys
import threading

from _runs import Fault, Run
from conftest import ROOT

PYTHON3 = f"""#!{sys.executable} -I
import os, sys
from multiprocessing.connection import Client
with Client(os.environ['FORKING_PYTHON']) as server:
    server.send((os.getcwd(), *sys.argv[1:]))
    status, output = server.recv()
sys.stderr.write(output)
sys.exit(status)
"""


@contextlib.contextmanager
def forking_python(folder, before=None):
    """Puts `python3` into a folder; its output is all on standard error. Gives the environment in which it is found.

    `before`: a function that each of its runs calls first.
    """
    command = pathlib.Path(folder, 'python3')
    command.write_text(PYTHON3)
    command.chmod(0o755)
    listener = multiprocessing.connection.Listener(family='AF_UNIX')
    threading.Thread(target=_serve, args=[listener, before], daemon=True).start()
    path = os.pathsep.join([str(folder), os.environ['PATH']])
    yield {**os.environ, 'PATH': path, 'FORKING_PYTHON': listener.address}
    with contextlib.suppress(OSError):  # It may have failed.
        multiprocessing.connection.Client(listener.address).close()


def _serve(listener, before):
    """Run the requested commands one after the other, until a connection without a request."""
    with listener, contextlib.suppress(EOFError):
        while True:
            with listener.accept() as connection:
                folder, script, *arguments = connection.recv()
                assert pathlib.Path(folder, script).resolve().parent == ROOT, script
                start = Fault(functools.partial(_start, folder, before), 'start')
                run = Run(os.path.basename(script), *arguments, fault=start)
                connection.send((run.wait(), run.output))


def _start(folder, before):
    os.chdir(folder)
    if before:
        before()

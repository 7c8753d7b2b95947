"""Workers that share an evaluation: this process, several of this host, or the workers of a Dask cluster."""
import contextlib
import os

from tripletreid import dask_cluster, signals
from tripletreid.errors import InputError


@contextlib.contextmanager
def pool(workers):
    """Yield a callable (function, tasks, description) that yields function(task) in order, with a progress bar.

    A free worker takes the next task. The callable's attribute `count` is the number of tasks at once.

    Args:
        workers: a number of processes of this host, 1 for only this one; the address of a Dask cluster, see
            `dask_cluster.pool`; or a callable of this function, which is reused and stays open.

    Raises:
        InputError: a process was killed, or as `dask_cluster.pool`.
    """
    if callable(workers):
        yield workers
    elif isinstance(workers, str):
        with dask_cluster.pool(workers) as share:
            yield share
    else:
        with _pool_of_processes(workers) as share:
            share.count = workers
            yield share


@contextlib.contextmanager
def _pool_of_processes(workers):
    """Yield the callable of `pool` for a number of processes, which live as long as the context."""
    import tqdm

    def progress(results, tasks, description):
        return tqdm.tqdm(results, description, len(tasks), leave=False, delay=1)

    def alone(function, tasks, description):
        return progress(map(function, tasks), tasks, description)

    if workers == 1:
        yield alone
        return
    import concurrent.futures
    import multiprocessing
    # The linear algebra of a process uses a fraction of the cores; it reads these variables when it is loaded.
    threads = str(max(1, _cores() // workers))
    for variable in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(variable, threads)
    spawn = multiprocessing.get_context('spawn')
    executor = concurrent.futures.ProcessPoolExecutor(workers, spawn, _live_no_longer_than_the_parent)

    def share(function, tasks, description):
        with signals.unheard_by_children():
            results = executor.map(function, tasks)
            # The executor watches only the processes that existed at its last task for a kill. This task makes it watch
            # the process that was started for the task before.
            executor.submit(os.getpid)
        return progress(results, tasks, description)

    with signals.raised(), executor:
        try:
            yield share
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():  # Otherwise the pool waits until their work is done.
                process.terminate()
            raise
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InputError('A process of --workers was killed, most likely for lack of memory. Use fewer.') from error


def _cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _live_no_longer_than_the_parent():
    """Start a worker: it ends when its parent ends, for any reason, and leaves Ctrl+C to its parent."""
    import multiprocessing
    import signal
    import threading

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    # Ctrl+C reaches all processes of a terminal; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()

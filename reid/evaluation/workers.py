"""Processes that share the work of an evaluation."""
import functools

from reid import signals
from reid.errors import InputError


def in_processes(function, tasks, workers, description):
    """The results of function(task), in order, with a progress bar; with `workers` > 1 from that many processes."""
    import tqdm
    bar = functools.partial(tqdm.tqdm, total=len(tasks), desc=description, leave=False, delay=1)
    if workers == 1:
        yield from bar(map(function, tasks))
        return
    import concurrent.futures
    import multiprocessing
    import os
    # The linear algebra of a process gets its share of the cores; it looks at these when it is loaded.
    threads = str(max(1, os.cpu_count() // workers))
    for variable in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(variable, threads)
    spawn = multiprocessing.get_context('spawn')
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, _live_no_longer_than_the_parent)
    with signals.raised(), pool:
        try:
            with signals.unheard_by_children():
                results = pool.map(function, tasks)
            yield from bar(results)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():  # Or the pool would wait until their work is done.
                process.terminate()
            raise
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InputError('A process of --workers was killed, most likely for lack of memory. Take fewer.') from error


def _live_no_longer_than_the_parent():
    """A worker's first act: from now on it ends when its parent does, however that ended, and leaves Ctrl+C to it."""
    import multiprocessing
    import os
    import signal
    import threading

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    # Ctrl+C reaches all processes of a terminal; one of them is enough to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()

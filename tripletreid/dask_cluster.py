"""Work that the workers of a Dask cluster share (https://distributed.dask.org), be they on many hosts or on this one.

Dask finds a free worker, gives the work of a lost one to another, and shows a dashboard. It is imported only
here, and only on demand.
"""
import contextlib
import functools
import gc
import logging
import os
import pickle
import re
import socket

from tripletreid import provenance, signals
from tripletreid.errors import InputError, is_out_of_memory, sentence_of

SECONDS_TO_ANSWER = 20  # For a scheduler,
SECONDS_TO_COME = 60  # and for its first worker.


@contextlib.contextmanager
def pool(address):
    """Return a callable (function, tasks, description) that yields function(task) in order, with a progress bar.

    Function, tasks and results travel pickled, between processes of this project and nobody else: see docs/scaling.md
    for a network that others can reach. The callable's attribute `count` is how many tasks are worked on at once.

    Args:
        address: of the scheduler, its scheduler file (`.json`), or `local:N` for N processes on this host.

    Raises:
        InputError: Dask is not installed, no scheduler or worker answers, or a worker runs other code than this one. And
            while the work is done: an error of a task, with the host's name; a task that killed its workers; a scheduler
            that went away.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError('--dask needs Dask: pip install -r requirements-cluster.txt.') from error
    logging.getLogger('distributed').setLevel(logging.CRITICAL)  # Its important messages become one sentence below.
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.raised())
        problem = None
        try:
            client = stack.enter_context(_client(distributed, address, stack))
        except (OSError, TimeoutError, ValueError, TypeError) as error:  # The last: TLS without a certificate.
            problem = ' '.join(str(error).split())
        if problem is not None:
            # The finalizer of the client that did not come about takes a lock. Run while another client starts, which
            # holds that lock, it would wait for ever.
            gc.collect()
            raise InputError(f'No scheduler of Dask answers at {address} ({problem}).')
        try:
            client.wait_for_workers(1, timeout=SECONDS_TO_COME)
        except (OSError, TimeoutError) as error:
            raise InputError(f'The scheduler at {address} has no worker, nor has one come within {SECONDS_TO_COME} '
                             f'seconds.') from error
        yield _Share(distributed, client, address)


def _client(distributed, address, stack):
    """Return a new `distributed.Client`."""
    local = re.fullmatch(r'local:([1-9]\d{0,3})', address)
    if address.startswith('local:') and not local:
        raise InputError(f'--dask {address} is no number of processes, such as local:4.')
    if not local:
        scheduler_options = {'scheduler_file': address} if address.endswith('.json') else {'address': address}
        if address.endswith('.json') and not os.path.isfile(address):
            raise InputError(f'There is no scheduler file {address}.')
        return distributed.Client(**scheduler_options, timeout=SECONDS_TO_ANSWER)
    with signals.unheard_by_children():
        cluster = stack.enter_context(distributed.LocalCluster(
            n_workers=int(local[1]), threads_per_worker=1, host='127.0.0.1', dashboard_address='127.0.0.1:0',
            silence_logs=logging.CRITICAL))
        return distributed.Client(cluster)


class _Share:
    """The object that `pool` yields."""

    def __init__(self, distributed, client, address):
        self.distributed, self.client, self.address = distributed, client, address
        self.count = max(1, sum(client.nthreads().values()))

    def __call__(self, function, tasks, description):
        import tqdm
        # Sent once and not with each task. As a task of its own it is sent again where the worker that has it is lost.
        shared = self.client.submit(_received, pickle.dumps((function, provenance.versions())), pure=False,
                                    key=f'{description}-all-{os.urandom(8).hex()}')
        futures = self.client.map(_call, tasks, shared=shared, pure=False, key=description)
        try:
            for number in tqdm.tqdm(range(len(futures)), description, leave=False, delay=1):
                future, futures[number] = futures[number], None
                yield self._result(future, f'{description} {number + 1} of {len(futures)}')
        finally:
            with contextlib.suppress(Exception):  # A scheduler that is gone has nothing to cancel.
                self.client.cancel([shared, *filter(None, futures)])

    def _result(self, future, name):
        try:
            return future.result()
        except InputError:
            raise
        except self.distributed.KilledWorker as error:
            raise InputError(f'{name} has ended {error.allowed_failures + 1} workers one after another, the last of them '
                             f'{error.last_worker.address}: most likely it needs more memory than a worker may '
                             f'take.') from error
        except ModuleNotFoundError as error:
            raise InputError(f'A worker cannot import {error.name}: start the workers in the folder of this project, with '
                             f'the same packages installed.') from error
        except Exception as error:
            if self.client.status == 'running' and not isinstance(error, self.distributed.CancelledError):
                raise
            raise InputError(f'The scheduler at {self.address} has gone. Complete results are kept.') from error


def _received(pickled):
    return pickle.loads(pickled)


def _call(task, shared):
    """Call function(task) on a worker; a known error there comes back as one sentence with the host's name."""
    function, versions = shared
    host = socket.gethostname()
    for name, wanted in versions.items():
        if versions_here()[name] != wanted:
            raise InputError(f'The worker on {host} runs {name} {versions_here()[name]} where {wanted} is needed: numbers '
                             f'could differ. Let all run the same.')
    try:
        return function(task)
    except InputError as error:
        raise InputError(f'On {host}: {error}') from error
    except Exception as error:
        if is_out_of_memory(error):
            raise InputError(f'On {host} there is not enough memory.') from error
        if isinstance(error, OSError):
            raise InputError(f'On {host}: {sentence_of(error)}') from error
        raise


versions_here = functools.cache(provenance.versions)

"""Work on a Dask cluster: a real scheduler and real workers on loopback, and their faults."""
import contextlib
import functools
import gc
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import _tasks
from _evaluated import embed, write_files
from _runs import Run, ended_in_one_sentence, make_people, train_arguments
from conftest import ROOT, wait_until
from tripletreid import dask_cluster, provenance
from tripletreid.embeddings.shards import shard_names
from tripletreid.errors import InputError

distributed = pytest.importorskip('distributed')


class Cluster:
    """A scheduler and its workers, started as their users start them; `address` is the scheduler file."""

    def __init__(self, folder, workers):
        self.address = str(folder / 'scheduler.json')
        self.scheduler = self._start('scheduler', '--port', '0')
        self.workers = []
        wait_until(lambda: os.path.exists(self.address), 'the scheduler')
        for _ in range(workers):
            self.start_worker()

    def start_worker(self, *more):
        self.workers.append(self._start('worker', '--nthreads', '1', *more))
        return self.workers[-1]

    def _start(self, role, *more):
        command = [sys.executable, '-m', f'distributed.cli.dask_{role}', '--host', '127.0.0.1', '--no-dashboard',
                   '--scheduler-file', self.address, *more]
        paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                env={**os.environ, 'PYTHONPATH': paths})

    def wait_until_idle(self):
        """Wait until no worker is busy; a worker finishes a task that it has begun even if nobody waits for it."""
        def under_way(dask_worker):
            return len(dask_worker.state.all_running_tasks) + len(dask_worker.state.ready)

        with distributed.Client(scheduler_file=self.address) as client:
            wait_until(lambda: not any(client.processing().values()) and not any(client.run(under_way).values()),
                       'the workers')

    def end(self):
        for process in [*self.workers, self.scheduler]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """Two workers, which come back when they die."""
    cluster = Cluster(tmp_path_factory.mktemp('cluster'), workers=2)
    yield cluster
    cluster.end()


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
    """query.csv, gallery.csv, query_a.h5 and gallery_a.h5."""
    root = tmp_path_factory.mktemp('evaluated')
    write_files(root)
    embed(root, 'a', noise=1.0)
    return root


def test_results_come_in_order_though_a_worker_is_killed(cluster, tmp_path):
    with dask_cluster.pool(cluster.address) as share:
        assert list(share(_tasks.square, range(30), 'Squares')) == [number ** 2 for number in range(30)]
        squares = share(functools.partial(_tasks.kill_once, tmp_path), range(30), 'Squares')
        assert list(squares) == [number ** 2 for number in range(30)]
        assert (tmp_path / 'killed').exists()


def test_what_goes_wrong_on_a_worker_is_a_sentence_with_its_host(cluster, monkeypatch):
    with dask_cluster.pool(cluster.address) as share:
        for error, sentence in _tasks.ERRORS:
            with pytest.raises(InputError, match=f'On {socket.gethostname()}.*{sentence}'):
                list(share(_tasks.fail, [error], 'Failing'))
        with pytest.raises(InputError, match='Failing 1 of 1 has ended 4 workers one after another'):
            list(share(_tasks.kill, [None], 'Failing'))
        monkeypatch.setattr(provenance, 'versions', lambda: {**dask_cluster.versions_here(), 'numpy': '0.1'})
        with pytest.raises(InputError, match=rf'on {socket.gethostname()} runs numpy {np.__version__} where 0.1 is'):
            list(share(_tasks.square, [1], 'Squares'))


@pytest.mark.parametrize('address, sentence', [
    ('/gone/scheduler.json', 'There is no scheduler file /gone/scheduler.json'), ('tls://127.0.0.1:1', 'No scheduler'),
    ('x://127.0.0.1:1', 'No scheduler'),
    ('local:x', '--dask local:x is no number of processes'), ('127.0.0.1:1', 'No scheduler of Dask answers at 127.0.0.1:1')])
def test_no_scheduler(monkeypatch, address, sentence):
    monkeypatch.setattr(dask_cluster, 'SECONDS_TO_ANSWER', 0.2)
    with pytest.raises(InputError, match=f'^{sentence}'):
        with dask_cluster.pool(address):
            pass
    clients = [each for each in gc.get_objects() if isinstance(each, distributed.Client)]
    assert all(each.status in ('running', 'closed') for each in clients)  # The next one would wait for it for ever.


def test_no_worker(monkeypatch, tmp_path):
    monkeypatch.setattr(dask_cluster, 'SECONDS_TO_COME', 0.2)
    cluster = Cluster(tmp_path, workers=0)
    try:
        with pytest.raises(InputError, match='has no worker, nor has one come within 0.2 seconds'):
            with dask_cluster.pool(cluster.address):
                pass
    finally:
        cluster.end()


def test_a_scheduler_that_goes_away(tmp_path):
    cluster = Cluster(tmp_path, workers=1)
    try:
        with dask_cluster.pool(cluster.address) as share:
            def end_scheduler():
                wait_until((tmp_path / 'begun').exists, 'the work')
                os.killpg(cluster.scheduler.pid, signal.SIGKILL)
            threading.Thread(target=end_scheduler).start()
            with pytest.raises(InputError, match='has gone'):
                list(share(functools.partial(_tasks.wait, tmp_path), [0, 1], 'Waiting'))
    finally:
        cluster.end()


@pytest.mark.parametrize('flags', [['--by_camera', '--verification'], ['--rerank']])
def test_evaluation_is_the_same_to_the_last_bit(cluster, evaluated, tmp_path, flags):
    arguments = ['evaluate.py', '--excluder', 'market1501', '--metric', 'euclidean', *flags]
    for role in ('query', 'gallery'):
        arguments += [f'--{role}_dataset', evaluated / f'{role}.csv', f'--{role}_embeddings', evaluated / f'{role}_a.h5']
    results = []
    for more in ([], ['--dask', cluster.address]):
        run = Run(*arguments, *more, '--filename', tmp_path / 'a.json')
        assert run.wait() == 0, run.output
        results.append(json.loads((tmp_path / 'a.json').read_text()))
        assert results[-1].pop('parameters')['dask'] == (cluster.address if more else None)
    assert results[0] == results[1]


def test_embedding_is_the_same_in_bytes(cluster, tmp_path):
    """As alone; and when its client is killed in the middle, and another goes on."""
    people, root = make_people(tmp_path), tmp_path / 'run'
    run = Run('train.py', *train_arguments(people, root, iterations=1))
    assert run.wait() == 0, run.output
    arguments = ['embed.py', '--experiment_root', root, '--dataset', people / 'people.csv', '--filename',
                 tmp_path / 'part.h5', '--shards', 6]
    paths = [pathlib.Path(name) for name in shard_names(tmp_path / 'part.h5', 6)]

    def embedded(*more, status=0):
        run = Run(*arguments, *more)
        assert run.wait() == status, run.output
        content = [path.read_bytes() for path in paths if path.exists()]
        for path in paths:
            path.unlink()
        return content

    alone = embedded()
    assert embedded('--dask', cluster.address) == alone
    run = Run(*arguments, '--dask', cluster.address)
    wait_until(lambda: any(path.exists() for path in paths), 'the first part')
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() in (0, -signal.SIGKILL)
    cluster.wait_until_idle()
    assert embedded('--dask', cluster.address, '--resume') == alone
    (people / '1_1.png').write_bytes(b'no image')
    ended_in_one_sentence(Run(*arguments, '--dask', cluster.address), f'On {socket.gethostname()}', '1_1.png')
    checked = Run('make_dataset.py', 'check', people / 'people.csv', people, '--dask', cluster.address)
    ended_in_one_sentence(checked, '1 of 24 images cannot be used')
    assert 'Neither a JPEG, a PNG nor a GIF: 1 (1_1.png)' in checked.output, checked.output

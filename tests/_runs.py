"""Runs of the scripts in forks, faults that strike them at a given moment, and the files that a run leaves.

    run = Run('train.py', '--experiment_root', root, …, fault=Fault(signal.SIGTERM, 'step', 7))
    assert run.wait() == 0
"""
import atexit
import multiprocessing.forkserver
import multiprocessing.reduction
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time
import types

import numpy as np
from PIL import Image

from conftest import ROOT

FORKS = multiprocessing.get_context('forkserver')


def start_fork_server():
    """Start the process that all runs are forks of, unless it is there; it has TensorFlow imported."""
    FORKS.set_forkserver_preload(['_preload'])
    # Its preload ignores sys.path, and reports no missing modules.
    paths_before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ['PYTHONPATH']
        if paths_before is not None:
            os.environ['PYTHONPATH'] = paths_before


class Fault:
    """Something that happens to a run from within: a signal or an exception, at a moment.

    action: number of a signal, an exception, or a function to call instead.
    moment: 'start' (before the script has begun), 'time' (place is in seconds after the start), 'step' (the place-th
        training step of this start), 'file' (the place-th time that a file is brought to the disk, renamed or removed),
        'embedding' (the place-th csv file that is embedded; a validation embeds two of each set), 'cache' (a cache is
        about to be filled) or 'batches' (they are about to be made).
    """

    def __init__(self, action, moment, place=None):
        self.action, self.moment, self.place = action, moment, place

    def __repr__(self):
        return f'{self.action!r} at {self.moment} {self.place}'

    def arm(self):
        """Called in the process that it is to strike."""
        if self.moment == 'start':
            self._strike()
            return
        if self.moment == 'time':
            # Before that Python may swallow an interrupt, in a destructor.
            listens = threading.Event()
            signal.signal = self._announced(signal.signal, listens)
            threading.Thread(target=self._strike_later, args=[listens], daemon=True).start()
            return
        from tripletreid.input_pipeline import batches, cache
        from tripletreid.modeling import inference
        from tripletreid.training import schedule
        places = {'step': [(schedule, 'learning_rate')], 'embedding': [(inference, 'embed_files')],
                  'cache': [(cache, '_decoded')], 'batches': [(batches, 'batches')],
                  'file': [(os, 'fsync'), (os, 'replace'), (os, 'remove')]}
        self.calls = 0
        for module, name in places[self.moment]:
            setattr(module, name, self._counting(getattr(module, name)))

    def _counting(self, function):
        def counting(*args, **options):
            self.calls += 1
            if self.calls == self.place:
                self._strike()
            return function(*args, **options)
        return counting

    def _announced(self, function, event):
        def announced(*args):
            result = function(*args)
            event.set()
            return result
        return announced

    def _strike_later(self, listens):
        listens.wait()
        time.sleep(self.place)
        self._strike()

    def _strike(self):
        if isinstance(self.action, BaseException):
            raise self.action
        if callable(self.action):
            self.action()
        else:
            os.kill(os.getpid(), self.action)


class Run:
    """A run of one of the scripts, under way.

    pid: its process. output: its text so far, both streams together.
    """

    def __init__(self, script, *arguments, fault=None, environment={}):
        start_fork_server()
        self._output = tempfile.TemporaryFile()
        descriptor = multiprocessing.reduction.DupFd(self._output.fileno())
        self._process = FORKS.Process(target=_main, args=(script, [str(each) for each in arguments], fault, descriptor,
                                                   environment))
        self._process.start()
        self.pid = self._process.pid
        # Otherwise the tests would wait at their end for a run of a failed test.
        atexit.register(self._process.kill)

    @property
    def output(self):
        self._output.seek(0)
        return self._output.read().decode(errors='replace')

    def wait(self, timeout=300):
        """The exit status; minus the signal's number when one ended it."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f'still running after {timeout} s: {self.output}'
        return self._process.exitcode

    def wait_for(self, text, timeout=300):
        """Wait until the output holds a text."""
        until = time.monotonic() + timeout
        while self._process.is_alive() and text not in self.output:
            assert time.monotonic() < until, f'no {text!r} within {timeout} s: {self.output}'
            time.sleep(0.01)
        assert text in self.output, self.output


def _main(script, arguments, fault, output, environment):
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(output.detach() if stream == 1 else 1, stream)
    sys.argv = [script, *arguments]
    sys.stdout = open(1, 'w', buffering=1, closefd=False)
    sys.stderr = open(2, 'w', buffering=1, closefd=False)
    assert 'train' in sys.modules, 'the fork server did not import _preload'
    import importlib

    from tripletreid import startup
    from tripletreid.errors import exit_with
    startup.settle()
    if fault:
        fault.arm()
    exit_with(importlib.import_module(script.removesuffix('.py')).main)


def _end_with_the_tests():
    """However they end: a run is of no use to anybody else."""
    multiprocessing.parent_process().join()
    os._exit(1)


def ended_in_one_sentence(run, *parts):
    """The run ended with status 1 and one clear sentence that holds all the parts."""
    assert run.wait() == 1, run.output
    assert 'Traceback' not in run.output and 'Exception ignored' not in run.output, run.output
    sentences = [line for line in run.output.splitlines() if line.startswith('error: ')]
    assert len(sentences) == 1, run.output
    for part in parts:
        assert str(part) in sentences[0], (part, sentences[0])


def make_people(root, identities=6, images=4):
    """Small images of a few identities under `root`, and their people.csv; each identity has its own colours."""
    random = np.random.default_rng(0)
    lines = []
    for pid in range(identities):
        base = random.integers(0, 200, (7, 7, 3))
        for number in range(images):
            pixels = np.kron(base + random.integers(0, 56, base.shape), np.ones((4, 4, 1))).astype(np.uint8)
            Image.fromarray(pixels).save(root / f'{pid}_{number}.png')
            lines.append(f'{pid},{pid}_{number}.png\n')
    (root / 'people.csv').write_text(''.join(lines))
    return root


def identities_of(count):
    """`sampling.Identities` of so many identities, as far as a `TrainState` needs them."""
    return types.SimpleNamespace(names=np.array([f'person {number}' for number in range(count)]),
                                 parts=[np.arange(count)])


def train_arguments(people, root, iterations=20, checkpoint_frequency=4):
    """The command line of a run that takes a second."""
    return ['--experiment_root', root, '--train_set', people / 'people.csv', '--image_root', people,
            '--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', 4, '--batch_p', 3, '--batch_k', 2,
            '--net_input_height', 28, '--net_input_width', 28, '--flip_augment', '--detailed_logs',
            '--train_iterations', iterations, '--checkpoint_frequency', checkpoint_frequency,
            '--decay_start_iteration', iterations // 2, '--deterministic']


def run_results(root, step):
    """Return the results of a run at a step: the bytes of its checkpoint and detailed logs, its losses, its curves."""
    root = pathlib.Path(root)
    names = [f'checkpoint-{step}.index', f'checkpoint-{step}.data-00000-of-00001', 'log_embs.npy', 'log_losses.npy',
             'log_fids.npy']
    lines = re.findall(r'iter: *(\d+), (loss min\|avg\|max: .*), ETA', (root / 'train.log').read_text())
    return {'log': lines, 'curves': curves(root), **{name: (root / name).read_bytes() for name in names}}


def curves(root):
    """{tag: [(step, value)]} as TensorBoard shows them, without the durations of the iterations."""
    # TensorBoard's own switch to do without TensorFlow, whose import takes long.
    sys.modules.setdefault('tensorboard.compat.notf', types.ModuleType('notf'))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
    events = EventAccumulator(str(root), size_guidance={'tensors': 0}, purge_orphaned_data=True).Reload()
    return {tag: [(event.step, make_ndarray(event.tensor_proto).tobytes()) for event in events.Tensors(tag)]
            for tag in events.Tags()['tensors'] if tag != 'secs_per_iter'}


def tear(path, random):
    """Damage a file as a power loss before it was flushed can: keep its beginning, or fill its length with zeros."""
    size = path.stat().st_size
    kept = int(random.integers(0, size))
    os.truncate(path, kept)
    if random.integers(2):
        os.truncate(path, size)


def random_fault(random, seconds):
    """A fault at a random moment of a run that takes `seconds`."""
    action = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, RuntimeError('injected')][random.integers(5)]
    moment = ('time', 'step', 'file')[random.integers(3)]
    if isinstance(action, RuntimeError):
        moment = 'step'
    place = random.uniform(0, seconds) if moment == 'time' else int(random.integers(1, 20))
    return Fault(action, moment, place)


def interrupt_until_done(arguments, root, random, seconds, count):
    """Run a training with random interruptions until it has ended.

    Args:
        arguments: of `train.py` for a root that is not there yet.
        root: the experiment root among them.
        random: NumPy generator.
        seconds: how long an undisturbed run takes.
        count: at most this many interruptions.

    Returns: the list of the faults that struck; 'torn' among them for a checkpoint that lost its end.
    """
    happened = []
    while True:
        resume = ['--experiment_root', root, '--resume'] if (root / 'args.json').exists() else arguments
        fault = random_fault(random, seconds) if len(happened) < count else None
        run = Run('train.py', *resume, fault=fault)
        status = run.wait()
        interrupted = status != 0 or 'Interrupted by' in run.output
        assert status in (0, 1, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, 130), (fault, run.output)
        assert 'injected' in run.output if status == 1 else 'Traceback' not in run.output, (fault, run.output)
        if not interrupted:
            return happened
        happened.append(fault)
        newest = sorted(root.glob('checkpoint-*.index'), key=lambda path: int(path.stem.split('-')[1]))
        if status == -signal.SIGKILL and len(newest) > 1 and random.integers(2):
            tear(newest[-1] if random.integers(2) else newest[-1].with_suffix('.data-00000-of-00001'), random)
            happened.append('torn')

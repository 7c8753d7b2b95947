#!/usr/bin/env python3
"""The long tests of docs/reliability.md, run on demand: a hundred interruptions of runs, of starts, ten thousand steps.

    python tests/soak.py                                    # an hour on one core
    python tests/soak.py --interruptions 20 --steps 0
"""
import argparse
import collections
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent)]

from _runs import Run, interrupt_until_done, make_people, run_results, train_arguments
from conftest import ROOT


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--interruptions', type=int, default=100)
    parser.add_argument('--starts', type=int, default=100)
    parser.add_argument('--steps', type=int, default=10000)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        people = make_people(pathlib.Path(folder))
        if args.steps:
            print_resources(people, pathlib.Path(folder), args.steps)
        if args.starts:
            print(f'{args.starts} interrupted starts, seed {args.seed}', flush=True)
            interrupt_starts(people, pathlib.Path(folder), args.starts, np.random.default_rng(args.seed))
        if args.interruptions:
            print(f'{args.interruptions} interruptions, seed {args.seed}', flush=True)
            interrupt(people, pathlib.Path(folder), args.interruptions, np.random.default_rng(args.seed))


def interrupt(people, folder, count, random):
    """Interrupt runs at random, and compare the results of each chain of them with an undisturbed run."""
    Run('train.py', '--help').wait()  # The fork server has started after that.
    started = time.monotonic()
    assert Run('train.py', *train_arguments(people, folder / 'undisturbed')).wait() == 0
    seconds = time.monotonic() - started
    expected, happened, runs = run_results(folder / 'undisturbed', 20), [], 0
    while len(happened) < count:
        root = folder / f'run{runs}'
        struck = interrupt_until_done(train_arguments(people, root), root, random, seconds,
                                      min(count - len(happened), 10))
        found = run_results(root, 20)
        different = [name for name in expected if found[name] != expected[name]]
        assert not different, (different, struck)
        happened, runs = happened + struck, runs + 1
        print(f'{len(happened)} interruptions in {runs} runs: the same bits', flush=True)
    kinds = collections.Counter('torn' if fault == 'torn' else f'{fault.action!r} at a {fault.moment}' for fault in happened)
    for kind, number in kinds.most_common():
        print(f'{number:4d} {kind}')


def interrupt_starts(people, folder, count, random):
    """Ctrl+C in the first two seconds of commands, as their users start them; prints how they ended."""
    root = folder / 'trained'
    assert Run('train.py', *train_arguments(people, root)).wait() == 0
    csv = people / 'people.csv'
    commands = [['train.py', *train_arguments(people, folder / 'started', iterations=100_000)],
                ['embed.py', '--experiment_root', root, '--dataset', csv],
                ['freeze.py', '--experiment_root', root, '--frozen_model_path', folder / 'model.tflite'],
                ['visualize.py', 'curves', root], ['make_dataset.py', 'check', csv, people]]
    ends = collections.Counter()
    for number in range(count):
        script, *arguments = map(str, commands[number % len(commands)])
        process = subprocess.Popen([sys.executable, ROOT / script, *arguments], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        time.sleep(random.uniform(0, 2))
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=120)[1]
        own = re.findall(r'File "(.*)", line (.*), in', printed) if 'Traceback' in printed else []
        # Python runs the first line of a script when it has started; until then nothing can be settled.
        starting = all(name.startswith('<frozen') or name.endswith('site.py') or line == '0' for name, line in own)
        left = script == 'train.py' and (folder / 'started').exists() and set(os.listdir(folder / 'started')) - {'.lock'}
        ends['files were left' if left else f'status {process.returncode}' if 'Traceback' not in printed else
             "Python's own start" if starting else 'traceback'] += 1
    for end, number in ends.most_common():
        print(f'{number:4d} {end}')


def print_resources(people, folder, steps):
    """Memory and open files of one long run, every tenth of it."""
    run = Run('train.py', *train_arguments(people, folder / 'long', steps, checkpoint_frequency=steps // 10))
    print('  step    memory   open files')
    for tenth in range(1, 10):
        run.wait_for(f'checkpoint-{tenth * steps // 10}.', timeout=3600)
        status = pathlib.Path(f'/proc/{run.pid}/status').read_text()
        memory = int(status.split('VmRSS:')[1].split()[0]) / 1024
        print(f'{tenth * steps // 10:6d} {memory:6.0f} MiB   {len(os.listdir(f"/proc/{run.pid}/fd"))}', flush=True)
    assert run.wait(3600) == 0, run.output


if __name__ == '__main__':
    main()

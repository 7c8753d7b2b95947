#!/usr/bin/env python3
"""The long tests of docs/reliability.md, run on demand: a hundred random interruptions, and ten thousand steps.

    python tests/soak.py                                    # an hour on one core
    python tests/soak.py --interruptions 20 --steps 0
"""
import argparse
import collections
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent)]

from _runs import Run, interrupt_until_done, left_behind, make_people, train_arguments


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--interruptions', type=int, default=100)
    parser.add_argument('--steps', type=int, default=10000)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        people = make_people(pathlib.Path(folder))
        if args.steps:
            print_resources(people, pathlib.Path(folder), args.steps)
        if args.interruptions:
            print(f'{args.interruptions} interruptions, seed {args.seed}', flush=True)
            interrupt(people, pathlib.Path(folder), args.interruptions, np.random.default_rng(args.seed))


def interrupt(people, folder, count, random):
    """Interrupt runs at random, and compare what each chain of them leaves behind with an undisturbed run."""
    Run('train.py', '--help').wait()  # The fork server has started after that.
    started = time.monotonic()
    assert Run('train.py', *train_arguments(people, folder / 'undisturbed')).wait() == 0
    seconds = time.monotonic() - started
    expected, happened, runs = left_behind(folder / 'undisturbed', 20), [], 0
    while len(happened) < count:
        root = folder / f'run{runs}'
        struck = interrupt_until_done(train_arguments(people, root), root, random, seconds,
                                      min(count - len(happened), 10))
        found = left_behind(root, 20)
        different = [what for what in expected if found[what] != expected[what]]
        assert not different, (different, struck)
        happened, runs = happened + struck, runs + 1
        print(f'{len(happened)} interruptions in {runs} runs: the same bits', flush=True)
    kinds = collections.Counter('torn' if fault == 'torn' else f'{fault.what!r} at a {fault.moment}' for fault in happened)
    for kind, number in kinds.most_common():
        print(f'{number:4d} {kind}')


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

#!/usr/bin/env python3
"""Measure the cost of sharing work by Dask: processes of this host against a single one. Prints one table each.

    benchmarks/dask_cluster.py overhead      a task that does nothing, many times
    benchmarks/dask_cluster.py embedding     embed.py with a small net, --dask local:N and without

For evaluations: benchmarks/evaluate.py --dask local:2 --references
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
FLAGS = ['--model_name', 'mnist', '--head_name', 'direct', '--embedding_dim', 16, '--net_input_height', 56,
         '--net_input_width', 56, '--batch_p', 2, '--batch_k', 2, '--train_iterations', 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('overhead', 'embedding'))
    parser.add_argument('--workers', type=int, default=2, help='processes (%(default)s)')
    parser.add_argument('--images', type=int, default=60000, help='to embed (%(default)s)')
    parser.add_argument('--tasks', type=int, nargs='+', default=[10, 100, 1000, 10000], help='(%(default)s)')
    args = parser.parse_args()
    measure_overhead(args) if args.what == 'overhead' else measure_embedding(args)


def nothing(number):
    return number


def measure_overhead(args):
    from tripletreid import dask_cluster
    started = time.monotonic()
    with dask_cluster.pool(f'local:{args.workers}') as share:
        list(share(nothing, range(args.workers), 'First'))
        print(f'{args.workers} workers are there after {time.monotonic() - started:.1f} s')
        print(f'{"tasks":>8}{"seconds":>10}{"ms each":>10}')
        for count in args.tasks:
            started = time.monotonic()
            assert sum(1 for _ in share(nothing, range(count), 'Tasks')) == count
            seconds = time.monotonic() - started
            print(f'{count:8}{seconds:10.2f}{1000 * seconds / count:10.2f}')


def measure_embedding(args):
    from speed import write_images
    with tempfile.TemporaryDirectory() as folder:
        csv = write_images(pathlib.Path(folder), 1000)
        many = pathlib.Path(folder, 'many.csv')
        lines = pathlib.Path(csv).read_text().splitlines(keepends=True)
        many.write_text(''.join(lines[number % len(lines)] for number in range(args.images)))
        run('train.py', '--experiment_root', f'{folder}/run', '--train_set', csv, '--image_root', folder, *FLAGS)
        embed = ['embed.py', '--experiment_root', f'{folder}/run', '--dataset', many, '--quiet', '--shards',
                 4 * args.workers]
        alone = run(*embed)
        shared = run(*embed, '--dask', f'local:{args.workers}')
        print(f'{args.images} images: {alone:.1f} s by one process, {shared:.1f} s by {args.workers}: '
              f'{alone / shared:.2f} times as fast')


def run(script, *arguments):
    """Seconds that a command of the project takes."""
    started = time.monotonic()
    subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.PIPE)
    return time.monotonic() - started


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Time and memory of a search: to store an index, to load it, and to search it with one photo, without the net.

    benchmarks/search.py                           a million embeddings of 128 numbers
    benchmarks/search.py --gallery 100000 --dim 2048 --metric cosine

The embeddings are random. NumPy, with all distances at once, is the comparison.
"""
import argparse
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # Not this folder: `search` is the project's.

import numpy as np

from tripletreid.metrics import METRICS
from tripletreid.search import index
from tripletreid.search.gallery import Gallery
from tripletreid.search.image_files import ImageFiles

AT_ONCE = 10_000


class Embedder:
    """Random embeddings in place of a net's."""
    made_by = {}

    def __init__(self, dim):
        self.dim = dim

    def files(self, paths):
        """Yield float32 arrays [B, dim] for image files, which are not opened."""
        random = np.random.default_rng(0)
        for start in range(0, len(paths), AT_ONCE):
            yield random.standard_normal((min(AT_ONCE, len(paths) - start), self.dim), np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--gallery', type=int, default=1_000_000, help='images (%(default)s)')
    add('--dim', type=int, default=128, help='(%(default)s)')
    add('--metric', choices=METRICS, default='euclidean', help='(%(default)s)')
    add('--photos', type=int, default=20, help='how many searches (%(default)s)')
    args = parser.parse_args()
    fids = [f'{number // 1000:06}/{number:09}.jpg' for number in range(args.gallery)]
    with tempfile.TemporaryDirectory() as folder:
        files = ImageFiles(folder, folder, fids, np.zeros((args.gallery, 2), np.int64))
        path = os.path.join(folder, 'index.sqlite')
        child = os.fork()  # Its memory does not count as the search's.
        if not child:
            _, seconds = timed(lambda: index.up_to_date(path, files, Embedder(args.dim), print))
            report('to store them', [seconds])
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit('The index could not be written.')
        measure(path, files, args)


def measure(path, files, args):
    queries = np.random.default_rng(1).standard_normal((args.photos, args.dim), np.float32)
    gallery, seconds = timed(lambda: Gallery('made up', index.up_to_date(path, files, Embedder(args.dim), print),
                                             args.metric))
    report('to load the index', [seconds])
    found, seconds = zip(*(timed(lambda: gallery.search(query, 10)) for query in queries))
    report('search.py, per photo', seconds)
    if args.metric in ('euclidean', 'sqeuclidean'):
        embs = gallery.embeddings.rows(0, len(gallery))
        in_memory, seconds = zip(*(timed(lambda: np.argpartition(np.square(embs - query).sum(axis=1), 10)[:10])
                                   for query in queries))
        report('NumPy, all distances at once', seconds)
        assert all({each.row for each in ours} == set(theirs.tolist()) for ours, theirs in zip(found, in_memory))


def timed(function):
    """Return the result of function(), and the seconds that it took: (wall clock, CPU)."""
    start = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - start[0], time.process_time() - start[1])


def report(name, seconds):
    clock, processor = (statistics.median(each) for each in zip(*seconds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f'{name}: {clock:.3f} s ({processor:.3f} of CPU), {peak:.0f} MB at its peak')


if __name__ == '__main__':
    main()

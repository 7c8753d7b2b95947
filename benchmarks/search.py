#!/usr/bin/env python3
"""How long one photo takes to be searched for in a gallery that is open, and how much memory: without the net.

    benchmarks/search.py                           a million embeddings of 128 numbers
    benchmarks/search.py --gallery 100000 --dim 2048 --metric cosine

Embeddings are made up, and each search is for another one. Beside it: NumPy, with the whole gallery in memory.
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

from tripletreid.dataset import Dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.embeddings.writer import EmbeddingWriter, FileContent
from tripletreid.metrics import METRICS
from tripletreid.search.gallery import Gallery

AT_ONCE = 10_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--gallery', type=int, default=1_000_000, help='images (%(default)s)')
    add('--dim', type=int, default=128, help='(%(default)s)')
    add('--metric', choices=METRICS, default='euclidean', help='(%(default)s)')
    add('--photos', type=int, default=20, help='how many searches (%(default)s)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'gallery.h5')
        child = os.fork()  # What making it needs of memory is not the search's.
        if not child:
            write_gallery(path, args)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit('The gallery could not be written.')
        measure(path, args)


def write_gallery(path, args):
    random = np.random.default_rng(0)
    fids = np.array([f'{number // 1000:06}/{number:09}.jpg' for number in range(args.gallery)], object)
    with EmbeddingWriter(path, FileContent(Dataset(path, fids, fids), args.dim, {})) as writer:
        for start in range(0, args.gallery, AT_ONCE):
            writer.append(random.standard_normal((min(AT_ONCE, args.gallery - start), args.dim), np.float32))


def measure(path, args):
    queries = np.random.default_rng(1).standard_normal((args.photos, args.dim), np.float32)
    start = time.perf_counter()
    embeddings = Embeddings(path)
    gallery = Gallery('made up', embeddings, args.metric)
    print(f'to open {len(gallery)} images x {args.dim}: {time.perf_counter() - start:.2f} s')
    found, seconds = zip(*(timed(lambda: gallery.search(query, 10)) for query in queries))
    tell('search.py, a photo', seconds)
    if args.metric in ('euclidean', 'sqeuclidean'):
        embs = embeddings.rows(0, len(embeddings))
        in_memory, seconds = zip(*(timed(lambda: np.argpartition(np.square(embs - query).sum(axis=1), 10)[:10])
                                   for query in queries))
        tell('NumPy, all distances at once', seconds)
        assert all({each.row for each in ours} == set(theirs.tolist()) for ours, theirs in zip(found, in_memory))


def timed(function):
    """What function() returns, and the seconds that it took: on the clock, of the processor."""
    start = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - start[0], time.process_time() - start[1])


def tell(what, seconds):
    clock, processor = (statistics.median(each) for each in zip(*seconds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f'{what}: {clock:.3f} s ({processor:.3f} of CPU), {peak:.0f} MB at its peak')


if __name__ == '__main__':
    main()

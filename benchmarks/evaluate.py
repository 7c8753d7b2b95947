#!/usr/bin/env python3
"""Measure time and memory of an evaluation, compared with plain implementations: a table of complete processes.

    benchmarks/evaluate.py                         the size of Market-1501, some minutes
    benchmarks/evaluate.py --gallery 500000 --references
    benchmarks/evaluate.py --gallery 500000 --verification --references
    benchmarks/evaluate.py --rerank --references   re-ranking too; --references dense does it with matrices of all pairs
    benchmarks/evaluate.py --queries 11659 --gallery 82161 --identities 3060 --rerank --references   as large as MSMT17
    benchmarks/evaluate.py --queries 10000 --gallery 10000 --dim 2 --identities 10 --references scikit-learn
    benchmarks/evaluate.py --queries 3000 --gallery 30000 --outliers 1 --references   one a thousand times as long
    benchmarks/evaluate.py --queries 1000 --dim 2048 --noise 6 --references
    benchmarks/evaluate.py --queries 3000 --gallery 20000 --dim 256 --metric cityblock --workers 2 --references

Embeddings are generated: one cluster per identity, seen by six cameras. The gallery also contains junk and distractors, in
the proportions of Market-1501, with more distractors in a larger gallery.
"""
import argparse
import csv
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # Not this folder: `evaluate` is the project's.

MARKET_GALLERY, LABELLED, JUNK = 19732, 13115, 3819  # Images of Market-1501: all, with an identity of the queries, junk.
NEIGHBOURS = 50


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--queries', type=int, default=3368, help='(%(default)s)')
    add('--gallery', type=int, default=19732, help='(%(default)s)')
    add('--dim', type=int, default=128, help='(%(default)s)')
    add('--identities', type=int, default=750, help='(%(default)s)')
    add('--noise', type=float, default=1.3, help='standard deviation within an identity, relative '
        'to the deviation of the identities (%(default)s)')
    add('--outliers', type=int, default=0, help='gallery images with embeddings a thousand times as long (%(default)s)')
    add('--metric', default='euclidean', help='of evaluate.py (%(default)s)')
    add('--repeat', type=int, default=3, help='runs of each, of which the fastest counts (%(default)s)')
    add('--workers', type=int, help='also with this number of processes')
    add('--dask', metavar='ADDRESS', help='also on this Dask cluster, such as local:2')
    add('--rerank', action='store_true', help='also with re-ranking')
    add('--by_camera', action='store_true', help='also by pairs of cameras')
    add('--verification', action='store_true', help='also with verification of all pairs')
    add('--references', nargs='*', choices=[*sorted(REFERENCES), *DENSE], default=sorted(REFERENCES),
        help=f'(all of them but {", ".join(DENSE)}, which takes 24 bytes a pair of images)')
    add('--folder', help='where to make the embeddings, and find them the next time (a temporary folder)')
    add('--run', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return STEPS[args.run[0]](args, args.run[1])
    if args.metric != 'euclidean' and args.references:
        parser.error('the references are for the euclidean metric alone: give --references without a name')
    with tempfile.TemporaryDirectory() as temporary:
        measure(args, args.folder or temporary)


def measure(args, folder):
    """Run everything as processes of their own and print the table."""
    sizes = ['--queries', args.queries, '--gallery', args.gallery, '--dim', args.dim, '--identities', args.identities,
             '--noise', args.noise, '--outliers', args.outliers]
    size = ' '.join(map(str, sizes))
    made = pathlib.Path(folder, 'size.txt')
    if not made.exists() or made.read_text() != size:
        # In a process of its own too: a process starts with the peak memory of the one that started it.
        run([__file__, *sizes, '--run', 'make', folder])
        made.write_text(size)

    evaluate = [ROOT / 'evaluate.py', '--excluder', 'market1501', '--metric', args.metric]
    for role in ('query', 'gallery'):
        evaluate += [f'--{role}_dataset', f'{folder}/{role}.csv', f'--{role}_embeddings', f'{folder}/{role}.h5']
    runs = {}
    shared = [['--workers', args.workers]] * bool(args.workers) + [['--dask', args.dask]] * bool(args.dask)
    for flags in ([], ['--rerank'] * args.rerank, ['--by_camera'] * args.by_camera, ['--verification'] * args.verification):
        for among in ([], *shared):
            more = [*flags, *among]
            runs[' '.join(map(str, ['evaluate.py', *more]))] = [*evaluate, *more]
    runs.update({name: [__file__, '--run', name, folder] for name in args.references})

    print(f'{args.queries} queries, {args.gallery} gallery images, {args.dim} dimensions, {os.cpu_count()} cores\n')
    print('| whole process | seconds | of evaluate.py | CPU seconds | MB | result |')
    print('| --- | --- | --- | --- | --- | --- |')
    fastest = None
    for name, command in runs.items():
        results = [run(command) for _ in range(args.repeat)]
        seconds, cpu_seconds, megabytes, output = min(results)
        fastest = fastest or seconds
        output = output.replace(' |', ',')  # These would end a cell of the table.
        print(f'| {name} | {seconds:.2f} | {seconds / fastest:.1f} × | {cpu_seconds:.2f} | {megabytes:.0f} | {output} |',
              flush=True)
    if args.rerank:
        images = args.queries + args.gallery
        print(f'\nA matrix of all pairs of the {images} images alone takes {4 * images ** 2 / 1e6:.0f} MB.')


def run(command):
    """Seconds, CPU seconds of all its processes, peak memory in MB (of its largest process) and last line of output of a
    Python script."""
    start = time.perf_counter()
    # Its errors go to a file: of two pipes the one that is not being read would fill up and stop the process.
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True)
        with process.stdout:
            stdout = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        errors.seek(0)
        stderr = errors.read()
    used = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000
    if status:
        return float('inf'), *used, (stderr.splitlines() or ['killed'])[-1]
    return seconds, *used, (stdout.splitlines() or [''])[-1]


# --- The measured processes --------------------------------------------------------------------------------------------

def make(args, folder):
    """Write query.csv, query.h5, gallery.csv and gallery.h5."""
    import numpy as np
    random = np.random.default_rng(0)
    os.makedirs(folder, exist_ok=True)
    centres = random.standard_normal((args.identities + 1, args.dim)).astype(np.float32)
    distractor, junk = 0, -1
    person = random.integers(1, args.identities + 1, args.queries)
    write(folder, 'query', person, centres, args.noise, random)
    share = min(1, args.gallery / MARKET_GALLERY)
    labelled, junk_count = int(share * LABELLED), int(share * JUNK)
    person = np.full(args.gallery, distractor)
    person[:labelled] = random.integers(1, args.identities + 1, labelled)
    person[labelled:labelled + junk_count] = junk
    write(folder, 'gallery', random.permutation(person), centres, args.noise, random, args.outliers)


def write(folder, role, person, centres, noise, random, outliers=0):
    import numpy as np

    from tripletreid.dataset import load_dataset
    from tripletreid.embeddings.writer import EmbeddingWriter, FileContent
    with open(f'{folder}/{role}.csv', 'w') as file:
        for row, (number, camera) in enumerate(zip(person, random.integers(1, 7, len(person)))):
            pid = '-1' if number < 0 else f'{number:04}'
            file.write(f'{pid},{role}/{pid}_c{camera}s1_{row:08}_00.jpg\n')
    dataset = load_dataset(f'{folder}/{role}.csv')
    dim = centres.shape[1]
    with EmbeddingWriter(f'{folder}/{role}.h5', FileContent(dataset, dim, {})) as writer:
        for start in range(0, len(person), 1 << 16):
            some = person[start:start + (1 << 16)]
            known = np.where(some > 0, some, 0)
            own = random.standard_normal((len(some), dim), np.float32)
            centre = np.where(some[:, None] > 0, centres[known], own)
            embs = centre + np.float32(noise) * random.standard_normal((len(some), dim), np.float32)
            embs[:max(0, outliers - start)] *= 1000
            writer.append(embs)


def read(folder, role):
    """Identities, file ids and embeddings [N, D] of a csv and an .h5 file, at once."""
    import h5py
    import numpy as np
    with open(f'{folder}/{role}.csv') as file:
        pids, fids = (np.array(column, object) for column in zip(*csv.reader(file)))
    with h5py.File(f'{folder}/{role}.h5') as file:
        return pids, fids, file['emb'][()]


def scikit_learn(_, folder):
    """Form the matrix of distances, and call scikit-learn for every query."""
    import numpy as np
    query_pids, query_fids, queries = read(folder, 'query')
    gallery_pids, gallery_fids, gallery = read(folder, 'gallery')
    sizes = (queries ** 2).sum(axis=1)[:, None] + (gallery ** 2).sum(axis=1)
    distances = np.sqrt(np.maximum(sizes - 2 * queries @ gallery.T, 1e-12))
    print_scores(query_pids, query_fids, gallery_pids, gallery_fids, distances)


def print_scores(query_pids, query_fids, gallery_pids, gallery_fids, distances):
    """Compute mAP and rank-1 from the full matrix of distances [Q, G], query by query."""
    import numpy as np
    from sklearn.metrics import average_precision_score

    from tripletreid import exclusion
    ignored = exclusion.load('market1501')(gallery_fids)(query_fids)
    aps, cmc = [], np.zeros(len(gallery_pids))
    for q in range(len(query_pids)):
        valid = ~ignored[q]
        matches = gallery_pids[valid] == query_pids[q]
        if matches.any():
            aps.append(average_precision_score(matches, -distances[q, valid]))
            cmc[np.argmax(matches[np.argsort(distances[q, valid])]):] += 1
    print(f'mAP: {np.mean(aps):.2%} | top-1: {cmc[0] / len(aps):.2%}')


def dense_reranking(_, folder):
    """Re-rank with matrices of all pairs, float32, as Zhong et al. 2017 describe it and did; scores by scikit-learn."""
    import numpy as np
    query_pids, query_fids, queries = read(folder, 'query')
    gallery_pids, gallery_fids, gallery = read(folder, 'gallery')
    images = np.concatenate([queries, gallery])
    count, first = len(images), len(queries)
    k1, k2, weight = 20, 6, 0.3
    sizes = (images ** 2).sum(axis=1)
    distances = sizes[:, None] + sizes - 2 * images @ images.T
    np.maximum(distances, 0, out=distances)
    distances /= distances.max(axis=1, keepdims=True)
    order = np.argsort(distances, axis=1).astype(np.int32)

    def reciprocal(image, k):
        near = order[image, :k + 1]
        return near[(order[near, :k + 1] == image).any(axis=1)]

    # Section 3.2: reciprocal neighbours, and the neighbours' own ones with an overlap of two thirds. 3.3: their weights.
    encodings = np.zeros((count, count), np.float32)
    for image in range(count):
        members = expanded = reciprocal(image, k1)
        for member in members:
            half = reciprocal(member, round(k1 / 2))
            if len(np.intersect1d(half, members)) > 2 / 3 * len(half):
                expanded = np.append(expanded, half)
        expanded = np.unique(expanded)
        weights = np.exp(-distances[image, expanded])
        encodings[image, expanded] = weights / weights.sum()
    # Section 3.4: local query expansion. 3.3 again: the Jaccard distance of two images' encodings.
    encodings = np.stack([encodings[order[image, :k2]].mean(axis=0) for image in range(count)])
    images_of_column = [np.flatnonzero(column) for column in encodings[first:].T]
    distances = distances[:first, first:].copy()
    for query in range(first):
        common = np.zeros(len(gallery), np.float32)
        for column in np.flatnonzero(encodings[query]):
            rows = images_of_column[column]
            common[rows] += np.minimum(encodings[query, column], encodings[first + rows, column])
        distances[query] = weight * distances[query] + (1 - weight) * (1 - common / (2 - common))
    print_scores(query_pids, query_fids, gallery_pids, gallery_fids, distances)


def faiss_neighbours(_, folder):
    """Find the nearest neighbours only, by FAISS's exact index."""
    import faiss
    _, _, queries = read(folder, 'query')
    _, _, gallery = read(folder, 'gallery')
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(gallery)
    _, rows = index.search(queries, NEIGHBOURS)
    print(f'{NEIGHBOURS} neighbours, numbers sum up to {rows.sum()}')


def our_neighbours(_, folder):
    """Find the same by ranking.py."""
    from tripletreid.dataset import load_dataset
    from tripletreid.embeddings.with_dataset import open_with_dataset
    from tripletreid.evaluation import neighbours
    from tripletreid.evaluation.retrieval import Retrieval
    queries, query_set = open_with_dataset([f'{folder}/query.h5'], load_dataset(f'{folder}/query.csv'))
    gallery, gallery_set = open_with_dataset([f'{folder}/gallery.h5'], load_dataset(f'{folder}/gallery.csv'))
    found = neighbours.nearest(Retrieval(queries, query_set, gallery, gallery_set, None, 'sqeuclidean'), NEIGHBOURS)
    print(f'{NEIGHBOURS} neighbours, numbers sum up to {found.rows.sum()}')


REFERENCES = {'scikit-learn': scikit_learn, 'faiss (neighbours)': faiss_neighbours,
              'ranking.nearest (neighbours)': our_neighbours}
DENSE = {'dense': dense_reranking}
STEPS = {'make': make, **REFERENCES, **DENSE}

if __name__ == '__main__':
    sys.exit(main())

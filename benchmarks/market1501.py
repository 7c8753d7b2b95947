#!/usr/bin/env python3
"""Measure the whole path on Market-1501: from the folder as downloaded and an experiment root to a table of scores.

    benchmarks/market1501.py ~/Market-1501-v15.09.15 runs/osnet
    benchmarks/market1501.py ~/Market-1501-v15.09.15 runs/osnet --folder measured --flip_augment --aggregator mean

Each row is one command of the project as a process of its own, with its wall time, CPU time and peak memory. The row
"scikit-learn" is a plain reference: the full distance matrix and one call per query. The last lines compare the scores.
Files are kept in --folder, so that a second call measures only the missing rows.
"""
import argparse
import json
import pathlib
import shlex
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # Not this folder: `evaluate` is the project's command.

from benchmarks.evaluate import run

SETS = {'query': 'query', 'test': 'gallery', 'multi_query': 'multi_query'}  # csv file: role in the evaluation.
SAME = 1e-9  # Two ways to the same mAP differ by rounding only.


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('image_root', help='the folder Market-1501-v15.09.15')
    add('experiment_root', help='a trained or imported model')
    add('--metric', default='cosine', help='distance of the embeddings (default: %(default)s)')
    add('--folder', help='where to keep the csv, .h5, JSON and HTML files (default: a temporary folder)')
    args, embed_flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(args, pathlib.Path(args.folder or temporary).resolve(), embed_flags)


def measure(args, folder, embed_flags):
    """Run every command that has not run in this folder before, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    print('| command | seconds | CPU seconds | MB | result |\n| --- | --- | --- | --- | --- |')
    row('make_dataset.py market1501', folder / 'market1501_multi_query.csv',
        [ROOT / 'make_dataset.py', 'market1501', args.image_root, '--out', folder])
    for name in SETS:
        row(f'embed.py, {name}', folder / f'{name}.h5', [
            ROOT / 'embed.py', '--experiment_root', args.experiment_root, '--image_root', args.image_root, '--quiet',
            '--dataset', folder / f'market1501_{name}.csv', '--filename', folder / f'{name}.h5', *embed_flags])

    evaluate = [ROOT / 'evaluate.py', '--excluder', 'market1501', '--metric', args.metric]
    for name, role in list(SETS.items())[:2]:
        evaluate += [f'--{role}_dataset', folder / f'market1501_{name}.csv',
                     f'--{role}_embeddings', folder / f'{name}.h5']
    images = ['--multi_query_dataset', folder / 'market1501_multi_query.csv',
              '--multi_query_embeddings', folder / 'multi_query.h5']
    for name, flags in {'plain': [], 'rerank': ['--rerank'], 'multi_query': images, 'by_camera': ['--by_camera'],
                        'verification': ['--verification']}.items():
        path = folder / f'{name}.json'
        row(shlex.join(['evaluate.py', *(flag for flag in flags if str(flag).startswith('--'))]), path,
            [*evaluate, *flags, '--filename', path])
    row('scikit-learn', None, [__file__, '--reference', folder, args.metric])
    photo = next((pathlib.Path(args.image_root) / 'query').glob('*.jpg'))
    row('search.py, one photo', folder / 'found.json', [
        ROOT / 'search.py', '--experiment_root', args.experiment_root, '--gallery', folder / 'test.h5', '--image_root',
        args.image_root, '--metric', args.metric, '--filename', folder / 'found.json', photo, *embed_flags])
    row('visualize.py report', folder / 'report.html', [
        ROOT / 'visualize.py', 'report', folder / 'verification.json', '--filename', folder / 'report.html',
        '--image_root', args.image_root])
    print_scores(folder)


def row(name, path, command):
    """Print one row of the table; a command whose file is there already has run before and is not measured again."""
    if path is not None and path.exists():
        return
    seconds, cpu_seconds, megabytes, output = run(command)
    print(f'| {name} | {seconds:.1f} | {cpu_seconds:.1f} | {megabytes:.0f} | {output.replace(" |", ",")} |', flush=True)


def print_scores(folder):
    """Print both mAPs, CMC and the thresholds of the evaluations, and whether the reference agrees."""
    print('\n| evaluation | mAP, Market-1501 | mAP, scikit-learn | rank-1 | rank-5 | rank-10 |\n'
          '| --- | --- | --- | --- | --- | --- |')
    scores = {name: json.loads((folder / f'{name}.json').read_text()) for name in
              ('plain', 'rerank', 'multi_query', 'verification')}
    for name, found in scores.items():
        numbers = [found['mAP_market1501'], found['mAP_sklearn'], *(found['CMC'][rank - 1] for rank in (1, 5, 10))]
        print(f'| {name} | {" | ".join(f"{number:.2%}" for number in numbers)} |')
    print('\n| FPR | threshold | TPR |\n| --- | --- | --- |')
    for point in scores['verification']['verification']['tpr_at_fpr']:
        print(f'| {point["fpr"]:.2g} | {point["threshold"]} | {point["tpr"]:.2%} |')
    reference = json.loads((folder / 'reference.json').read_text())
    difference = abs(reference['mAP'] - scores['plain']['mAP_sklearn'])
    print(f'\nThe reference has an mAP of {reference["mAP"]:.10%}: a difference of {difference:.1g}'
          f'{"" if difference < SAME else ", which is too much"}.')


def write_reference(folder, metric):
    """Score the embeddings with a full matrix of float64 distances and scikit-learn, query by query."""
    import numpy as np
    from sklearn.metrics import average_precision_score, pairwise_distances

    from benchmarks.evaluate import read
    for name, role in list(SETS.items())[:2]:  # Under the names that `read` expects.
        for ending in ('csv', 'h5'):
            link = pathlib.Path(folder, f'{role}.{ending}')
            if not link.exists():
                link.symlink_to(pathlib.Path(folder, f'market1501_{name}.csv' if ending == 'csv' else f'{name}.h5'))
    query_pids, query_fids, queries = read(folder, 'query')
    gallery_pids, gallery_fids, gallery = read(folder, 'gallery')
    distances = pairwise_distances(queries.astype(np.float64), gallery.astype(np.float64), metric)

    def cameras(fids):
        return np.array([fid.rpartition('/')[2].split('_')[1][:2] for fid in fids])

    aps, first = [], 0
    gallery_cameras = cameras(gallery_fids)
    for pid, camera, near in zip(query_pids, cameras(query_fids), distances):
        valid = (gallery_pids != '-1') & ~((gallery_pids == pid) & (gallery_cameras == camera))
        matches = gallery_pids[valid] == pid
        if matches.any():
            aps.append(average_precision_score(matches, -near[valid]))
            first += matches[np.argmin(near[valid])]
    pathlib.Path(folder, 'reference.json').write_text(json.dumps({'mAP': float(np.mean(aps))}))
    print(f'mAP: {np.mean(aps):.2%}, rank-1: {first / len(aps):.2%}')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--reference']:
        write_reference(*sys.argv[2:])
    else:
        sys.exit(main())

"""Write csv files for the folder of a dataset as downloaded, and look at every image before hours of training.

    make_dataset.py market1501 ROOT            writes data/market1501_{train,query,test}.csv
    make_dataset.py check data/market1501_train.csv data/market1501_test.csv ROOT
    make_dataset.py join both.csv market=data/market1501_train.csv duke=data/dukeMTMC_train.csv
"""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import argparse
import collections
import dataclasses
import functools
import itertools
import os
import re
import shlex

from layouts import _convert
from tripletreid import dask_cluster, exclusion, plugins
from tripletreid.argument_types import DASK_ADDRESS, ArgumentParser
from tripletreid.errors import InputError, exit_with, some, warn
from tripletreid.files import check_output
from tripletreid.names import canonical_name, canonical_path

LOOKED_AT_ONCE = 1024  # Images per task of a cluster's worker.


def main():
    parser = ArgumentParser(
        description=(__doc__ or '').partition('\n')[0],
        example='python make_dataset.py folder products --val_fraction 0.2 --query_per_identity 2\n'
                'python make_dataset.py check data/folder_train.csv data/folder_test.csv products\n'
                'python make_dataset.py folder --help')
    commands = parser.add_subparsers(dest='command', required=True, metavar='NAME')
    command_of_name = {}
    for name in plugins.choices('layouts'):
        layout = plugins.load('layouts', name)
        command = commands.add_parser(name, help=(layout.__doc__ or name).splitlines()[0], description=layout.__doc__,
                                      example=f'python make_dataset.py {name} ~/{name} --out csv')
        command.add_argument('root', metavar='ROOT', help='folder of the dataset, as downloaded and unpacked')
        command.add_argument('--out', default='data', help='folder for the csv files (default: data)')
        command.add_argument('--name', default=name, type=file_name,
                             help=f'beginning of the names of the csv files (default: {name})')
        if hasattr(layout, 'add_arguments'):
            layout.add_arguments(command)
        command_of_name[name] = command
    command = commands.add_parser('check', help='Look at every image of csv files.', description=check.__doc__,
                                  example='python make_dataset.py check csv/folder_train.csv csv/folder_test.csv products')
    command.add_argument('csv', metavar='CSV', nargs='+', help='csv files; images that several of them share are reported')
    command.add_argument('root', metavar='ROOT', help='folder that the paths in the csv files are relative to')
    command.add_argument('--dask', metavar='ADDRESS', help='let the workers of a Dask cluster look at the images: '
                         f'{DASK_ADDRESS}')
    command = commands.add_parser('join', help='Make one csv file of several.', description=join.__doc__,
                                  example='python make_dataset.py join both.csv market=market_train.csv duke=duke_train.csv')
    command.add_argument('out', metavar='OUT', help='csv file to write')
    command.add_argument('sets', metavar='NAME=CSV', nargs='+', type=named_csv, help='csv files to join, each '
                         'with the beginning of its identities and paths')
    command.add_argument('--image_root', metavar='DIR', help='folder with the folders NAME; images with the same '
                         'content in two sets are then reported')
    args = parser.parse_args()
    if args.command in command_of_name:
        command_of_name[args.command].check(args)
    options = vars(args)

    name = options.pop('command')
    if name == 'check':
        check(options['csv'], options['root'], options['dask'])
    elif name == 'join':
        join(**options)
    else:
        root, out, prefix = (options.pop(each) for each in ('root', 'out', 'name'))
        make(name, root, out, options, prefix)


def file_name(text):
    """Check a name without a folder, for argparse."""
    if not text or text != os.path.basename(text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a name; the folder is given by --out')
    return text


def named_csv(text):
    """Parse 'market=a.csv' into ('market', 'a.csv'), for argparse."""
    name, _, path = text.partition('=')
    if not name or not path or '/' in name or os.sep in name or name in ('.', '..'):
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=CSV, with a NAME that a folder can have')
    return name, path


def make(name, root, out, options, prefix=None):
    """Write `out`/PREFIX_SUBSET.csv for each subset of a dataset, sorted, all or none, and print a summary.

    Missing parts of the complete dataset are only warned of, because people have reasons to work with a part.

    Args:
        name: name of a file in layouts/, see layouts/__init__.py.
        root: the folder of the dataset.
        out: the folder for the csv files, created if it does not exist.
        options: keyword arguments for `splits` of that file. With `convert` the images are converted into that folder,
            and the csv files name the copies.
        prefix: beginning of the csv files' names; None: `name`.

    Raises:
        InputError: nothing of the dataset is in `root`, something there cannot be read, or csv files of an earlier run
            would stay next to the new ones.
    """
    from tripletreid.dataset import is_dataset
    from tripletreid.dataset_writer import save_datasets
    layout = plugins.load('layouts', name)
    prefix = prefix or name
    convert = options.get('convert')
    subsets = {subset: existing(rows, subset, root, convert)
               for subset, rows in canonical_rows(layout.splits(root, **options), root).items()}
    if not any(subsets.values()):
        raise InputError(f'No image of {name} is in {root}; make_dataset.py {name} --help describes the expected folder.')
    paths = {subset: os.path.join(out, f'{prefix}_{subset}.csv') for subset in (*layout.TOTALS, *subsets)}
    refuse_leftovers(paths, subsets)
    if os.path.isdir(out):
        for path in paths.values():
            check_output(path, '--out', 'a csv file of images', is_dataset)
    if convert:
        fids = sorted({row[1] for rows in subsets.values() for row in rows})
        copies = _convert.convert(root, fids, convert, options.get('max_side'), options.get('bits', 16))
        subsets = {subset: sorted((pid, copies[fid]) for pid, fid in rows if fid in copies)
                   for subset, rows in subsets.items()}
        refuse_leftovers(paths, subsets)
    os.makedirs(out, exist_ok=True)
    save_datasets({paths[subset]: rows for subset, rows in subsets.items() if rows})
    for subset, rows in subsets.items():
        if not rows:
            warn(f'There are no images of {subset} in {root}: {paths[subset]} is not written.')
    excluder = layout.excluder(root, **options) if hasattr(layout, 'excluder') else layout.EXCLUDER
    print_summary({subset: rows for subset, rows in subsets.items() if rows}, paths, excluder, layout.TOTALS)
    print(f'The images are in {convert or root}: train with --image_root {shlex.quote(convert or root)}.')


def existing(rows, subset, root, convert):
    """Return the sorted rows whose images exist, and warn of the others.

    Args:
        rows: rows of a subset.
        subset: its name.
        root: the folder of the dataset.
        convert: whether images are converted; then images outside of the root are skipped.
    """
    from tripletreid.image_root import file_problems
    problems = file_problems([row[1] for row in rows], root)
    fids = {kind: [row[1] for row, problem in zip(rows, problems) if problem == kind] for kind in ('missing', 'outside')}
    if fids['missing']:
        warn(f'{len(fids["missing"])} of {len(rows)} images of {subset} are not in {root} and are skipped: '
             f'{some(fids["missing"])}.')
    if fids['outside']:
        consequence = 'are skipped' if convert else 'are only read with --allow_outside_root'
        warn(f'{len(fids["outside"])} of {len(rows)} images of {subset} lie outside of {root} and {consequence}: '
             f'{some(fids["outside"])}.')
    unusable = ('missing', 'outside') if convert else ('missing',)
    return sorted(row for row, problem in zip(rows, problems) if problem not in unusable)


def print_summary(subsets, paths, excluder, totals):
    """Print the numbers of each subset and its excluder; warn of missing parts and of names that look equal.

    Args:
        subsets: {subset: rows}.
        paths: {subset: csv file}.
        excluder: value of `--excluder`.
        totals: the known numbers, see layouts/__init__.py.
    """
    import numpy as np

    from tripletreid.dataset import Dataset, warn_of_lookalikes
    warn_of_lookalikes(*(Dataset(paths[subset], *(np.array(column, object) for column in zip(*rows)))
                         for subset, rows in subsets.items()))
    table = [('subset', 'identities', 'images', 'tracklets', 'cameras', 'file')]
    for subset, rows in subsets.items():
        counts = count(rows, excluder)
        table.append((subset, *(number or '-' for number in counts.values()), paths[subset]))
        if subset == 'train':  # People that are held out of it are no missing ones.
            counts = count([*rows, *subsets.get('val_query', ()), *subsets.get('val_test', ())], excluder)
        for kind, known in totals.get(subset, {}).items():
            if counts[kind] != known:
                difference = 'missing' if counts[kind] < known else 'too many'
                warn(f'{subset} has {counts[kind]} of {known} {kind}: {abs(known - counts[kind])} {difference}.')
    print_table(table)
    why = ', since no cameras are known' if excluder == 'diagonal' else ''
    print(f'Evaluate with --excluder {shlex.quote(excluder)}{why}.')


def canonical_rows(subsets, root):
    """Return {subset: rows} with identities, paths and tracklets in canonical spelling.

    Raises:
        InputError: identities that differ only in blanks around them would merge.
    """
    spellings = collections.defaultdict(set)
    canonical = {}
    for subset, rows in subsets.items():
        canonical[subset] = [(canonical_name(row[0]), canonical_path(row[1]), *map(canonical_name, row[2:])) for row in rows]
        for (name, *_), (spelled, *_) in zip(canonical[subset], rows):
            spellings[name].add(spelled)
    merged = next((sorted(each) for name, each in spellings.items() if len(each) > 1 or not name), None)
    if merged:
        raise InputError(f'{" and ".join(map(repr, merged))} in {root} would be one identity, since blanks around '
                         f'a name do not count; rename them.')
    return canonical


def refuse_leftovers(paths, subsets):
    """Raise InputError when csv files of an earlier run would stay: the images of its test set may train now.

    They are not deleted here, since somebody may have made them by hand.

    Args:
        paths: {subset: csv file} for all possible subsets.
        subsets: {subset: rows} for the subsets that will be written.
    """
    left = [path for subset, path in paths.items() if not subsets.get(subset) and os.path.lexists(path)]
    if left:
        raise InputError(f'{" and ".join(left)} of an earlier run would stay next to the csv files of this run, though '
                         f'they do not belong together; delete the old files, or choose another --name or --out.')


def count(rows, excluder):
    """Count the identities, images, tracklets and cameras of rows, a dict; 0 tracklets or cameras if they have none."""
    pattern = getattr(exclusion.load(excluder)([]), 'pattern', None)
    cameras = set()
    if pattern and 'cid' in re.compile(pattern).groupindex:
        names = (row[1] if '/' in pattern else os.path.basename(row[1]) for row in rows)
        cameras = {match['cid'] for match in (re.search(pattern, name) for name in names) if match}
    return {
        'identities': len({row[0] for row in rows}),
        'images': len(rows),
        'tracklets': len({(row[0], row[2]) for row in rows if len(row) == 3}),
        'cameras': len(cameras),
    }


def check(csv_paths, root, dask=None):
    """Look at every image of csv files, and print the faults that may spoil a training or an evaluation.

    Reported are missing and undecodable files, images that training sees differently from how a viewer shows them (turned
    by EXIF, transparent), identities with one image, odd sizes, copies (images with the same content, or one picture
    saved again, as a perceptual hash finds it), and images that several of the csv files share. The status is 1 if
    images cannot be used, and if csv files share images or pictures saved again, unless the names of both say that they
    are for training (train), for validation (val) or for the evaluation (query, test, gallery or probe).
    """
    from tripletreid import image_report
    from tripletreid.dataset import load_dataset
    from tripletreid.image_root import image_path
    datasets = [load_dataset(path) for path in csv_paths]
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    fids = sorted({fid for dataset in datasets for fid in dataset.fids})
    paths = [os.path.abspath(image_path(root, fid)) for fid in fids]
    looks = dict(zip(fids, look_at(paths, dask)))

    faults = image_report.report(datasets, looks)
    changed = sum(bool(looks[fid].changes) for fid in fids)
    if changed:
        warn(f'Training sees {changed} of {len(fids)} images differently from how a viewer shows them; make_dataset.py '
             f'folder {root} --convert NEW_FOLDER writes copies that are the same to both.')
    if faults:
        raise InputError(' '.join(faults))


def join(out, sets, image_root):
    """Make one csv file of several, in which each identity and each path begins with NAME/: nothing merges.

    The images of each set have to lie in a folder NAME of the --image_root of later commands. If that is given here, the
    command warns of images with the same content in two sets. (`train.py --train_set A.csv B.csv` joins as well, each
    with an image root of its own.)
    """
    from tripletreid.copies import warn_of_shared_images
    from tripletreid.dataset import is_dataset, joined, load_dataset
    from tripletreid.dataset_writer import save_dataset
    from tripletreid.image_root import check_files
    names = [name for name, _ in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f'Two csv files are called {twice}, so that their identities would merge: give each its own NAME.')
    if len(sets) < 2:
        raise InputError('Give at least two csv files to join, each as NAME=CSV.')
    check_output(out, 'OUT', 'a csv file of images', is_dataset, [path for _, path in sets])
    datasets = {name: load_dataset(path) for name, path in sets}
    for dataset in datasets.values():
        outside = [fid for fid in dataset.fids if os.path.isabs(fid) or '..' in fid.split('/')]
        if outside:
            raise InputError(f'{dataset.path} has paths that lead out of its folder: {some(outside)}.')
    both = joined(list(datasets.values()), names)
    both = dataclasses.replace(both, sets=())  # From now on its paths begin with the folders of the sets.
    if image_root is not None:
        check_files(both, image_root, allow_outside_root=True)  # These folders may be links.
    for first, second in itertools.combinations(datasets, 2):
        pids = set(datasets[first].pids) & set(datasets[second].pids)
        if pids:
            warn(f'{first} and {second} have identities with equal names: {some(pids)}. They stay apart, as '
                 f'{first}/{min(pids)} and {second}/{min(pids)}; if both count the same persons, put the rows of both '
                 f'into one csv file instead.')
    if image_root is not None:
        warn_of_shared_images(both, image_root)
    save_dataset(out, both)
    table = [('set', 'identities', 'images', 'tracklets', 'file')]
    for name, dataset in [*datasets.items(), ('together', both)]:
        rows = list(zip(dataset.pids, dataset.fids, *([] if dataset.tracklets is None else [dataset.tracklets])))
        counts = count(rows, 'diagonal')
        table.append((name, counts['identities'], counts['images'], counts['tracklets'] or '-',
                      out if dataset is both else dataset.path))
    print_table(table)
    print(f'The images of each set belong into its folder of the image root: {", ".join(f"{name}/" for name in datasets)}.')
    print('Evaluate each set by itself: in file names, where excluders look, equal identities of two sets would merge.')


def look_at(paths, dask):
    """Return the `looks.Look` at each image file, a list; workers of a Dask cluster look if `dask` is its address."""
    import tqdm

    from tripletreid.input_pipeline.looks import list_of_looks, looks
    if dask is None:
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # A training may be running on a GPU.
        return list(tqdm.tqdm(looks(_convert.changes, paths), 'Looking at images', len(paths), leave=False))
    with dask_cluster.pool(dask) as share:
        at_once = max(1, min(LOOKED_AT_ONCE, len(paths) // share.count))
        tasks = [paths[start:start + at_once] for start in range(0, len(paths), at_once)]
        results = share(functools.partial(list_of_looks, _convert.changes), tasks, 'Looking at images')
        return list(itertools.chain.from_iterable(results))


def print_table(table):
    """Print rows of cells in aligned columns: the first and the last to the left, the numbers between to the right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*table)]
    for first, *numbers, last in table:
        middle = '  '.join(f'{number:>{width}}' for number, width in zip(numbers, widths[1:-1]))
        print(f'{first:<{widths[0]}}  {middle}  {last}')


if __name__ == '__main__':
    exit_with(main)

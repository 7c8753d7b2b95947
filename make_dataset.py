"""From the folder of a dataset as downloaded to csv files, and a look at every image before hours of training.

    make_dataset.py market1501 ROOT            writes data/market1501_{train,query,test}.csv
    make_dataset.py check data/market1501_train.csv data/market1501_test.csv ROOT
"""
import argparse
import collections
import csv
import functools
import hashlib
import itertools
import multiprocessing.pool
import os
import re
import statistics
import sys

from reid import plugins, quiet
from reid.errors import InputError, exit_with
from reid.files import written_whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='NAME')
    for name in plugins.choices('data'):
        dataset = plugins.load('data', name)
        command = commands.add_parser(name, help=dataset.__doc__.splitlines()[0], description=dataset.__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument('root', metavar='ROOT', help='the folder as downloaded and unpacked')
        command.add_argument('--out', default='data', help='the folder for the csv files (default data)')
        if hasattr(dataset, 'add_arguments'):
            dataset.add_arguments(command)
    command = commands.add_parser('check', help='Look at every image of csv files.', description=check.__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument('csv', metavar='CSV', nargs='+', help='with several, the images that they share are reported')
    command.add_argument('root', metavar='ROOT', help='the folder that the paths in the csv files are relative to')
    options = vars(parser.parse_args())

    name = options.pop('command')
    if name == 'check':
        check(options['csv'], options['root'])
    else:
        make(name, options.pop('root'), options.pop('out'), options)


def make(name, root, out, options):
    """Write `out`/NAME_SUBSET.csv for each subset of a dataset, sorted, and print what is in them.

    What is missing of the whole dataset is a warning only: people have reasons to work with a part.

    Args:
        name: of a file in data/, see data/__init__.py.
        root: the folder of the dataset.
        out: the folder for the csv files, made when it is not there.
        options: keyword arguments for `splits` of that file.

    Raises:
        InputError: nothing of the dataset is in `root`, or something there cannot be read.
    """
    from reid.dataset import file_problems
    dataset = plugins.load('data', name)
    subsets = {}
    for subset, rows in dataset.splits(root, **options).items():
        problems = file_problems([row[1] for row in rows], root)
        subsets[subset] = sorted(row for row, problem in zip(rows, problems) if problem != 'missing')
        missing = [row[1] for row, problem in zip(rows, problems) if problem == 'missing']
        if missing:
            warn(f'Of the {len(rows)} images of {subset} these are not in {root} and left out: {some(missing)}.')
    if not any(subsets.values()):
        raise InputError(f'No image of {name} is in {root}; make_dataset.py {name} --help says what is looked for.')

    os.makedirs(out, exist_ok=True)
    table = [('subset', 'identities', 'images', 'tracklets', 'cameras', 'file')]
    for subset, rows in subsets.items():
        path = os.path.join(out, f'{name}_{subset}.csv')
        if not rows:
            warn(f'There are no images of {subset} in {root}: {path} is not written.')
            continue
        write_csv(path, rows)
        counts = count(rows, dataset.EXCLUDER)
        table.append((subset, *(number or '-' for number in counts.values()), path))
        for what, known in dataset.TOTALS.get(subset, {}).items():
            if counts[what] != known:
                difference = 'missing' if counts[what] < known else 'too many'
                warn(f'{subset} has {counts[what]} of {known} {what}: {abs(known - counts[what])} {difference}.')
    print_table(table)
    print(f'Evaluate with --excluder {dataset.EXCLUDER}.')


def write_csv(path, rows):
    """Write rows of str as a csv file that `dataset.load_dataset` reads as the same rows.

    Raises:
        InputError: a name that is not UTF-8.
    """
    with written_whole(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', newline='') as file:
            plain = csv.writer(file, lineterminator='\n')
            quoted = csv.writer(file, lineterminator='\n', quoting=csv.QUOTE_ALL)
            for row in rows:
                # A blank at a field's start and a bare carriage return survive only inside of quotes.
                odd = any(re.search(r'^\s|\r', field) for field in row)
                try:
                    (quoted if odd else plain).writerow(row)
                except UnicodeEncodeError as error:
                    raise InputError(f'The file name {row[1]!a} is not UTF-8; rename it.') from error


def count(rows, excluder):
    """Numbers of identities, images, tracklets and cameras among rows; 0 tracklets or cameras where there are none."""
    pattern = getattr(plugins.load('excluders', excluder).Excluder, 'pattern', None)
    names = [os.path.basename(row[1]) for row in rows] if pattern else []
    return {
        'identities': len({row[0] for row in rows}),
        'images': len(rows),
        'tracklets': len({(row[0], row[2]) for row in rows if len(row) == 3}),
        'cameras': len({match['cid'] for match in (re.search(pattern, name) for name in names) if match}),
    }


def check(csv_paths, root):
    """Look at every image of csv files, and print what may spoil a training or an evaluation.

    That is missing and undecodable files, identities with one image, odd sizes, images with the same content, and
    images that several of the csv files share. The status is 1 when there are images that cannot be used.
    """
    import tqdm

    from reid.dataset import image_path, load_dataset
    datasets = [load_dataset(path) for path in csv_paths]
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    # The decoder of training itself looks at the images, since others accept what it does not; but not on a GPU, where
    # a training may be running.
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    with quiet.tensorflow_import():
        from reid.input_pipeline import images
    fids = sorted({fid for dataset in datasets for fid in dataset.fids})
    paths = [image_path(root, fid) for fid in fids]
    with multiprocessing.pool.ThreadPool(os.cpu_count()) as pool:  # Decoding and hashing run outside of Python's lock.
        seen = pool.imap(functools.partial(look, images.decode), paths, chunksize=16)
        seen = tqdm.tqdm(seen, 'Looking at images', len(fids), leave=False)
        looks = dict(zip(fids, seen))

    for dataset in datasets:
        print_report(dataset, looks)
    for first, second in itertools.combinations(datasets, 2):
        contents = {looks[fid].content for fid in first.fids if not looks[fid].problem}
        shared = [fid for fid in second.fids if looks[fid].content in contents]
        print(f'images in both {first.path} and {second.path}: {some(shared)}')
    unusable = [fid for fid in fids if looks[fid].problem]
    if unusable:
        raise InputError(f'{len(unusable)} of {len(fids)} images cannot be used.')


Look = collections.namedtuple('Look', 'problem size content')


def look(decode, path):
    """What is seen of an image file: its problem (or None), its (width, height), a hash of its content."""
    import tensorflow as tf
    try:
        with open(path, 'rb') as file:
            content = file.read()
        height, width, _ = decode(content).shape
    except OSError as error:
        return Look(error.strerror, None, None)
    except tf.errors.OpError:
        return Look('Not a whole image', None, None)
    return Look(None, (width, height), hashlib.sha256(content).digest())


def print_report(dataset, looks):
    """Print what was seen of the images of one csv file."""
    fids_of_pid = collections.defaultdict(set)
    fids_of_problem = collections.defaultdict(set)
    fids_of_content = collections.defaultdict(set)
    pids_of_content = collections.defaultdict(set)
    for pid, fid in zip(dataset.pids, dataset.fids):
        fids_of_pid[pid].add(fid)
        if looks[fid].problem:
            fids_of_problem[looks[fid].problem].add(fid)
        else:
            fids_of_content[looks[fid].content].add(fid)
            pids_of_content[looks[fid].content].add(pid)
    sizes = collections.Counter(looks[fid].size for fids in fids_of_content.values() for fid in sorted(fids))
    images = len(set(dataset.fids))
    print(f'{dataset.path}: {len(dataset)} rows, {images} images, {len(fids_of_pid)} identities')
    print(f'  images of an identity: {spread(map(len, fids_of_pid.values()))}')
    if sizes:
        widths, heights = zip(*sizes.elements())
        (width, height), often = sizes.most_common(1)[0]
        print(f'  width: {spread(widths)}; height: {spread(heights)}; {width}x{height} most often ({often})')
    for problem, fids in sorted(fids_of_problem.items()):
        print(f'  {problem}: {some(fids)}')
    single = [pid for pid, fids in fids_of_pid.items() if len(fids) == 1]
    same = [fids for fids in fids_of_content.values() if len(fids) > 1]
    mixed = [fids_of_content[content] for content, pids in pids_of_content.items() if len(pids) > 1]
    print(f'  identities with one image: {some(single)}')
    print(f'  images with the content of another: {some(itertools.chain(*same))}')
    print(f'  images of more than one identity: {some(itertools.chain(*mixed))}')


def spread(numbers):
    """'2 to 72, median 15'."""
    numbers = sorted(numbers)
    return f'{numbers[0]} to {numbers[-1]}, median {statistics.median_low(numbers)}'


def some(names):
    """How many there are and the first three: '5 (a, b, c, …)'."""
    names = sorted(set(names))
    if not names:
        return '0'
    return f'{len(names)} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'


def print_table(table):
    """Print rows of cells in aligned columns: the first and the last to the left, numbers between them to the right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*table)]
    for first, *numbers, last in table:
        middle = '  '.join(f'{number:>{width}}' for number, width in zip(numbers, widths[1:-1]))
        print(f'{first:<{widths[0]}}  {middle}  {last}')


def warn(sentence):
    print(f'warning: {sentence}', file=sys.stderr)


if __name__ == '__main__':
    exit_with(main)

"""Several csv files to one, in which neither identities nor images of two of them merge."""
import argparse
import collections
import itertools
import multiprocessing.pool
import os

from reid.errors import InputError, some, warn
from reid.files import check_output
from reid.provenance import file_hash


def named_csv(text):
    """('market', 'a.csv') of 'market=a.csv', for argparse."""
    name, _, path = text.partition('=')
    if not name or not path or '/' in name or os.sep in name or name in ('.', '..'):
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=CSV, with a NAME that a folder can have')
    return name, path


def join(out, sets, image_root=None):
    """Write the csv file `out` with all rows of several: `NAME/` is in front of each identity and each path.

    Identities that are called alike, and images with the same content, in two sets are a warning.

    Args:
        out: the csv file.
        sets: pairs (name, csv file).
        image_root: the folder that holds a folder NAME for each set; None: the images are not looked at.

    Returns: {name: its `Dataset`}, and the joined one.

    Raises:
        InputError: a name twice, or fewer than two; a path that has no place in a folder; tracklets in some only; images
            that are not in `image_root`.
    """
    from reid.dataset import check_files, is_dataset, joined, load_dataset, save_dataset
    names = [name for name, _ in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f'Two csv files are called {twice}, so that their identities would merge: give each its own NAME.')
    if len(sets) < 2:
        raise InputError('There are two csv files at least to be joined, each as NAME=CSV.')
    check_output(out, 'OUT', 'a csv file of images', is_dataset, [path for _, path in sets])
    datasets = {name: load_dataset(path) for name, path in sets}
    for dataset in datasets.values():
        outside = [fid for fid in dataset.fids if os.path.isabs(fid) or '..' in fid.split('/')]
        if outside:
            raise InputError(f'{dataset.path} has paths that lead out of its folder: {some(outside)}.')
    both = joined(list(datasets.values()), names)
    if image_root is not None:
        check_files(both, image_root, allow_outside_root=True)  # Its folders may well be links.
    for first, second in itertools.combinations(datasets, 2):
        pids = set(datasets[first].pids) & set(datasets[second].pids)
        if pids:
            warn(f'{first} and {second} have identities that are called alike: {some(pids)}. They stay apart, as '
                 f'{first}/{min(pids)} and {second}/{min(pids)}; if both count the same persons, put the rows of both '
                 f'into one csv file instead.')
    if image_root is not None:
        warn_of_copies(both, image_root)
    save_dataset(out, both)
    return datasets, both


def warn_of_copies(dataset, image_root):
    """Warn of images with the same content in several sets of a joined `Dataset`."""
    # Only what is as large as an image of another set can be a copy of it.
    as_large = alike(dataset.fids, image_root, os.path.getsize)
    copies = alike(as_large, image_root, file_hash)
    if copies:
        warn(f'Images with the same content are in several sets: {some(copies)}. As images of two identities they teach '
             f'that a picture differs from itself.')


def alike(fids, image_root, look):
    """Those file ids for which `look`, a function of a path, answers the same as for one of another set; sorted."""
    import tqdm

    from reid.dataset import image_path
    fids_of_answer = collections.defaultdict(list)
    with multiprocessing.pool.ThreadPool(16) as pool:
        answers = pool.imap(lambda fid: look(image_path(image_root, fid)), fids, chunksize=16)
        for fid, answer in zip(fids, tqdm.tqdm(answers, 'Comparing images', len(fids), delay=2, leave=False)):
            fids_of_answer[answer].append(fid)
    return sorted(fid for same in fids_of_answer.values() if len({each.partition('/')[0] for each in same}) > 1
                  for fid in same)

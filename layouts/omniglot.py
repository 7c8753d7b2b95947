"""Omniglot: images_background/ and images_evaluation/ side by side, or one such folder with --test_alphabets.

An identity is a character, a camera one of the 20 people who drew it: each drew every character of an alphabet once.
images_background_small1/ and _small2/, five alphabets each, are read as well. The test, and with --val_alphabets the
validation, are whole alphabets; drawers 01 to 05 of each character are its queries, 06 to 20 the gallery.

Lake, Salakhutdinov and Tenenbaum, Human-level Concept Learning through Probabilistic Program Induction, Science 2015.
"""
import glob
import os

from layouts import _files
from tripletreid.errors import InputError, some, warn

EXCLUDER = 'omniglot'
TOTALS = {'train': {}, 'val_query': {}, 'val_test': {}, 'query': {}, 'test': {}}
# The small ones share alphabets with each other and with images_background; each counts where it is found first.
PARTS = ('images_background', 'images_background_small1', 'images_background_small2', 'images_evaluation')
DRAWING = r'^(?P<pid>\d{4})_\d{2}\.png$'
DRAWERS = 20
QUERY_DRAWERS = 5


def add_arguments(parser):
    parser.add_argument('--test_alphabets', nargs='+', metavar='NAME',
                        help='alphabets of the test (default: all of images_evaluation)')
    parser.add_argument('--val_alphabets', nargs='+', metavar='NAME', default=(),
                        help='alphabets of the validation: val_query and val_test (default: none)')


def splits(root, test_alphabets=None, val_alphabets=()):
    """Return the rows of each subset.

    Args:
        root: a folder of alphabets, or one with some of `PARTS` in it.
        test_alphabets: names of alphabets; None: the alphabets of images_evaluation.
        val_alphabets: names of others. All remaining alphabets train.
    """
    folders = folders_of_alphabets(root)
    if test_alphabets is None:
        test_alphabets = [name for name, folder in folders.items() if folder.startswith('images_evaluation')]
        if not test_alphabets:
            raise InputError(f'There is no images_evaluation in {root}; say with --test_alphabets which alphabets are '
                             f'not trained on but tested, of {", ".join(folders)}.')
    for flag, names in (('--test_alphabets', test_alphabets), ('--val_alphabets', val_alphabets)):
        unknown = [name for name in names if name not in folders]
        if unknown:
            raise InputError(f'{flag}: there is no alphabet {unknown[0]} in {root}, but {", ".join(folders)}.')
    both = sorted(set(test_alphabets) & set(val_alphabets))
    if both:
        raise InputError(f'The alphabet {both[0]} is to choose by and to test, which would flatter the test: leave it '
                         f'out of --val_alphabets or --test_alphabets.')

    subsets = {subset: [] for subset in TOTALS}
    incomplete = []
    for alphabet, folder in folders.items():
        for character in names_in(root, folder, 'character*'):
            drawings = _files.named_images(root, f'{folder}/{character}', DRAWING)
            incomplete += [f'{alphabet}/{character}'] if len(drawings) != DRAWERS else []
            for _, fid in drawings:
                drawer = int(fid[-len('01.png'):-len('.png')])
                subset = 'query' if drawer <= QUERY_DRAWERS else 'test'
                if alphabet in val_alphabets:
                    subset = f'val_{subset}'
                elif alphabet not in test_alphabets:
                    subset = 'train'
                subsets[subset].append((f'{alphabet}/{character}', fid))
    if incomplete:
        warn(f'Characters with another number of drawings than {DRAWERS}: {some(incomplete)}.')
    return {subset: rows for subset, rows in subsets.items() if rows}


def folders_of_alphabets(root):
    """Return the folder of each alphabet, relative to `root`: a dict of its name to that.

    Raises:
        InputError: there is no alphabet.
    """
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    if names_in(root, '', '*/character*'):
        parts = ['']
    else:
        _files.find(root, *PARTS)
        parts = [part for part in PARTS if os.path.isdir(os.path.join(root, part))]
    folders = {}
    for part in parts:
        for path in names_in(root, part, '*/character*'):
            alphabet = path.split('/')[0]
            folders.setdefault(alphabet, f'{part}/{alphabet}' if part else alphabet)
    if not folders:
        raise InputError(f'There are no folders of characters, such as Greek/character01, in {" or ".join(parts)} of '
                         f'{root}.')
    return folders


def names_in(root, folder, pattern):
    """Return the paths that fit a pattern of `glob` in a folder of `root`, relative to that folder, with /, sorted."""
    folder = os.path.join(root, folder)
    return sorted(path.replace(os.sep, '/') for path in glob.glob(pattern, root_dir=folder))

"""Helpers of the layouts: finding and reading the files of a download, exporting images as PNG, a seeded order."""
import concurrent.futures
import faulthandler
import hashlib
import os
import re

from tripletreid.errors import InputError, some, warn
from tripletreid.files import temporary_folder

NAMES_OF_VIEWERS = ('Thumbs.db', 'desktop.ini')
IMAGE_ENDING = r'\.(?:jpe?g|png)$'


def find(root, *names):
    """Return the path of the first of `names` (files or folders relative to `root`) that exists.

    Raises:
        InputError: none of them exists. The message names a sub-folder with one, since archives often unpack into one.
    """
    if not os.path.isdir(root):
        raise InputError(f'There is no folder {root}.')
    for folder in ['', *sorted(os.listdir(root))]:
        for name in names:
            path = os.path.join(root, folder, name)
            if os.path.exists(path):
                if folder:
                    raise InputError(f'{name} is not in {root}, but in its folder {folder}: give that one.')
                return path
    raise InputError(f'There is no {" nor ".join(names)} in {root}.')


def named_images(root, folder, pattern):
    """Return rows (pid, file id) of the files in `folder` whose names fit a pattern; no rows without such a folder.

    Other files are skipped with a warning, except `Thumbs.db` of the originals and hidden files.

    Args:
        pattern: a regular expression with a group `pid`; case does not matter.

    Raises:
        InputError: there are files, and none of them fits.
    """
    if not os.path.isdir(os.path.join(root, folder)):
        return []
    names = [name for name in sorted(os.listdir(os.path.join(root, folder)))
             if name not in NAMES_OF_VIEWERS and name[0] != '.']
    found = [re.search(pattern, name, re.IGNORECASE) for name in names]
    others = [name for name, match in zip(names, found) if not match]
    if others and len(others) == len(names):
        raise InputError(f'None of the {len(names)} files in {os.path.join(root, folder)}, such as {names[0]}, has a name '
                         f'as the images of this dataset have: {pattern}')
    if others:
        warn(f'Files in {os.path.join(root, folder)} without a name as the images of this dataset have are skipped: '
             f'{some(others)}.')
    return [(match['pid'], f'{folder}/{match.string}') for match in found if match]


def read_table(path, columns):
    """Read the lines of a text file with a fixed number of words: a list of lists of str, without empty lines.

    Raises:
        InputError: not UTF-8 text, or a line with another number of words.
    """
    try:
        with open(path, encoding='utf-8') as file:
            table = [line.split() for line in file]
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 text ({error.reason} at byte {error.start}).') from error
    for number, words in enumerate(table, 1):
        if words and len(words) != columns:
            raise InputError(f'{path} has {len(words)} words in line {number} where {columns} are expected.')
    return [words for words in table if words]


def read_mat(path, variable):
    """Read a variable of a MATLAB file (up to version 7), an array as SciPy returns it.

    Raises:
        InputError: not a MATLAB file, a damaged file, or a file without that variable.
    """
    # In a process of its own, because a damaged byte may crash the reader.
    with concurrent.futures.ProcessPoolExecutor(1, initializer=faulthandler.disable) as pool:
        try:
            content = pool.submit(_load_mat, path).result()
        except Exception as error:  # The reader raises errors of many types for damaged files.
            raise InputError(f'{path} cannot be read as a MATLAB file ({error}).') from error
    if variable not in content:
        held = ', '.join(name for name in content if not name.startswith('__')) or 'nothing'
        raise InputError(f'{path} has no variable {variable}, but {held}.')
    return content[variable]


def _load_mat(path):
    import scipy.io
    return scipy.io.loadmat(path)


def pick(items, numbers, path):
    """Return the items with MATLAB's numbers, which count from 1; `path` is the file with the numbers.

    Raises:
        InputError: a number that is not from 1 to the number of items.
    """
    wrong = [number for number in numbers if not 1 <= number <= len(items)]
    if wrong:
        raise InputError(f'{path} refers to number {wrong[0]} of {len(items)}. Does it belong to this dataset?')
    return [items[number - 1] for number in numbers]


def export_png(root, folder, images, total):
    """Write images as PNG files into a new folder of `root`: all of them, or no folder at all.

    An existing folder stays as it is, and `images` is not iterated.

    Args:
        images: iterable of (name, pixels), pixels uint8 [H, W] or [H, W, 3].
        total: their number, for the progress bar.
    """
    import tqdm
    from PIL import Image
    target = os.path.join(root, folder)
    if os.path.isdir(target):
        return
    with temporary_folder(f'.{folder}.partial.', root) as temporary:
        unfinished = os.path.join(temporary, folder)
        for name, pixels in tqdm.tqdm(images, f'Writing {target}', total, delay=2, leave=False):
            path = os.path.join(unfinished, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Image.fromarray(pixels).save(path)
        os.rename(unfinished, target)


def shuffled(names, seed):
    """Return the names in a random order by a hash: equal for a seed on every machine and version of Python."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f'{seed} {name}')).digest())

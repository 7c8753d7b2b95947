"""What the datasets share: finding and reading the files of a download, exporting images as PNG, a seeded order."""
import concurrent.futures
import faulthandler
import hashlib
import os
import re

from tripletreid.errors import InputError
from tripletreid.files import temporary_folder


def find(root, *names):
    """The path of the first of `names` (files or folders relative to `root`) that is there.

    Raises:
        InputError: none of them is. A sub-folder that has one is named, since an archive often unpacks into one.
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
    """Rows (pid, file id) of the files in `folder` whose names fit `pattern`, a regular expression with a group `pid`.

    Others, such as the `Thumbs.db` in the originals, are no images. A folder that is not there has no rows.
    """
    if not os.path.isdir(os.path.join(root, folder)):
        return []
    found = [re.search(pattern, name) for name in os.listdir(os.path.join(root, folder))]
    return [(match['pid'], f'{folder}/{match.string}') for match in found if match]


def read_table(path, columns):
    """The lines of a text file that has so many words in each: a list of lists of str. Empty lines do not count.

    Raises:
        InputError: no UTF-8 text, or a line with another number of words.
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
    """One variable of a MATLAB file (up to version 7), an array as SciPy gives it.

    Raises:
        InputError: no MATLAB file, a damaged one, or one without that variable.
    """
    # In a process of its own, since a damaged byte may crash the reader; what is told of that is told below.
    with concurrent.futures.ProcessPoolExecutor(1, initializer=faulthandler.disable) as pool:
        try:
            content = pool.submit(_load_mat, path).result()
        except Exception as error:  # The reader raises whatever a damaged byte leads it to.
            raise InputError(f'{path} cannot be read as a MATLAB file ({error}).') from error
    if variable not in content:
        held = ', '.join(name for name in content if not name.startswith('__')) or 'nothing'
        raise InputError(f'{path} has no variable {variable}, but {held}.')
    return content[variable]


def _load_mat(path):
    import scipy.io
    return scipy.io.loadmat(path)


def pick(items, numbers, path):
    """The items with MATLAB's numbers, which count from 1; `path` is the file that the numbers are from.

    Raises:
        InputError: a number that is not from 1 to the number of items.
    """
    wrong = [number for number in numbers if not 1 <= number <= len(items)]
    if wrong:
        raise InputError(f'{path} refers to number {wrong[0]} of {len(items)}. Does it belong to this dataset?')
    return [items[number - 1] for number in numbers]


def export_png(root, folder, images, total):
    """Write images as PNG files into a new folder of `root`: all of them, or no folder at all.

    A folder that is there already is left as it is, and `images` is not even begun.

    Args:
        images: iterable of (name, pixels), pixels uint8 [H, W] or [H, W, 3].
        total: how many they are, for the progress bar.
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
    """The names in an order drawn by a hash: the same for a seed on every machine and with every version of Python."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f'{seed} {name}')).digest())

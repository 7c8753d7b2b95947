"""Spelling of names: the canonical form of paths and identities, and names that differ only in their spelling."""
import collections
import functools
import posixpath
import re
import unicodedata

JUNK = '-1'  # Identity of images that show nobody in particular: detector errors, in Market-1501 and after it.
INVISIBLE = '\u200b\u200c\u200d\u2060\ufeff'  # Zero-width characters, which `str.strip` keeps.
SLASH, NEWLINE, DOT = b'/\n.'


def canonical_path(path):
    """Return the one spelling of a path with slashes: `a/1.png` for `./a//1.png` and `a/b/../1.png`.

    Links are not followed, since the file need not exist here. A path that leads out of its folder still does, and an
    absolute path stays absolute. Blanks belong to the name of a file and stay.
    """
    path = posixpath.normpath(path)
    return path[1:] if path.startswith('//') else path  # POSIX leaves the meaning of exactly two slashes open.


def canonical_paths(paths):
    """Return the canonical spelling of many paths as a list; fast where all of them are canonical already."""
    import numpy as np

    # Each path that is not canonical has an empty part or one that begins with a dot. To compare all bytes takes a fraction
    # of the time that searching for such parts takes.
    text = np.frombuffer('\n'.join(['', *paths, '']).encode('utf-8', 'surrogatepass'), np.uint8)
    first, second = text[:-1], text[1:]
    slash, dot = first == SLASH, second == DOT
    if (slash & (dot | (second == SLASH) | (second == NEWLINE)) | dot & (first == NEWLINE)).any():
        return [canonical_path(path) for path in paths]
    return paths if isinstance(paths, list) else list(paths)


def canonical_name(name):
    """Return the name of an identity or a tracklet without blanks, tabs, no-break spaces and the like around it."""
    while name != (name := name.strip().strip(INVISIBLE)):
        pass
    return name


def is_junk(pid):
    """Return whether an identity means nobody, also in a joined dataset, where it begins with the name of a set."""
    return pid == JUNK or pid.endswith(f'/{JUNK}')


@functools.lru_cache(1 << 16)  # The few names of cameras occur in thousands of files.
def spelling_key(name):
    """Return the common key of all spellings of a name: `07` and `7`, `Bob` and `bob`, `José` composed and decomposed."""
    if not name.isascii():
        name = unicodedata.normalize('NFKC', name)
    name = ' '.join(name.casefold().split())
    return re.sub(r'(?<![\d.])0+(?=\d)', '', name)


def path_spelling_key(path):
    """Return the common key of all spellings of a path, on a file system that ignores case and Unicode form."""
    return (path if path.isascii() else unicodedata.normalize('NFC', path)).casefold()


def lookalikes(names, key=spelling_key):
    """Find names that differ only in their spelling.

    Args:
        names: an iterable of str that can be iterated twice. Memory is needed only for names that differ from their key.
        key: a function that returns the same str for all spellings of a name.

    Returns: a list of lists of different names, each list with one key.
    """
    spellings = collections.defaultdict(set)
    for name in names:
        if (name_key := key(name)) != name:
            spellings[name_key].add(name)
    if spellings:
        for name in names:
            if name in spellings:
                spellings[name].add(name)
    return [sorted(each) for each in spellings.values() if len(each) > 1]


def some_lookalikes(groups, limit=3):
    """Return the first few results of `lookalikes` as text; names that look equal are printed with escape sequences."""
    def shown(group):
        printed = {unicodedata.normalize('NFKC', name) for name in group}
        return ' and '.join(name if len(printed) == len(group) else ascii(name) for name in group)

    return ', '.join(shown(group) for group in groups[:limit]) + (', …' if len(groups) > limit else '')

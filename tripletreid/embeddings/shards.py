"""One embedding file in several: names of the shards, and their rows read as one sequence."""
import collections
import glob
import itertools
import os
import re

import numpy as np

from tripletreid.embeddings.differences import Difference, differences
from tripletreid.embeddings.reader import Embeddings, Rows
from tripletreid.errors import InputError

SHARD_NAME = re.compile(r'(.*)-(\d{5,})-of-(\d{5,})\.h5')
FILES_AT_ONCE = 64  # Shards open at once, because a process may have only about a thousand open files.


class Shards(Rows):
    """Several open embedding files whose rows are read as one sequence, file after file. Use it as a context manager.

    Attributes:
        path: their name in messages.
        paths: paths of the files.
        shape, fids, pooled, parameters: as in `Embeddings`; the parameters are the first file's.
    """

    def __init__(self, paths):
        """Open files.

        Args:
            paths: paths of two or more files, in order.

        Raises:
            InputError: as `Embeddings`; or files that do not belong together: other dimensions, pooled tracklets or file
                ids in only one of them, another checkpoint or other flags.
        """
        self.paths = list(paths)
        self.path = f'{paths[0]} and {len(paths) - 1} more'
        self._open = {}
        first, starts = None, [0]
        for number, path in enumerate(self.paths):
            file = self._file(number)
            starts.append(starts[-1] + len(file))
            facts = _facts(file)
            if first is None:
                first, self.parameters = facts, file.parameters
                self.pooled, self.has_fids = file.pooled, file.has_fids
            odd = [Difference(name, value, facts[name]) for name, value in first.items() if value != facts[name]]
            odd += differences(self.parameters, file.parameters)
            if odd:
                self.close()
                name, there, here = odd[0]
                raise InputError(f'{paths[0]} and {path} are not parts of one file: {name} {there} there and {here} here. '
                                 f'Embed one of them again.')
        self._starts = np.array(starts)
        self.shape = (starts[-1], first['dimensions'])

    def _file(self, number):
        """Return the open `Embeddings` of a file."""
        if number not in self._open:
            if len(self._open) == FILES_AT_ONCE:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = Embeddings(self.paths[number])
        return self._open[number]

    def __getstate__(self):
        # Another process opens the files that it needs itself.
        return {**vars(self), '_open': {}, 'paths': list(map(os.path.abspath, self.paths))}

    def close(self):
        for file in self._open.values():
            file.close()

    def _parts(self, start, stop):
        """Yield (open file, its first row, its stop row) for each file that holds some of the rows [start, stop)."""
        number = int(np.searchsorted(self._starts, start, side='right')) - 1
        while start < stop:
            before, end = self._starts[number:number + 2]
            if start < end:
                yield self._file(number), int(start - before), int(min(stop, end) - before)
            start, number = max(start, end), number + 1

    def fids_of_rows(self, start, stop):
        """Read as `Embeddings` does."""
        parts = [file.fids_of_rows(*rows) for file, *rows in self._parts(start, min(stop, len(self)))]
        return np.concatenate([np.empty(0, object), *parts])

    def rows(self, start, stop):
        """Read as `Embeddings` does."""
        parts = [file.rows(*rows) for file, *rows in self._parts(start, min(stop, len(self)))]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.shape[1]), np.float32), *parts])

    def read_into(self, start, embs):
        """Read as `Embeddings` does."""
        done = 0
        for file, first, last in self._parts(start, start + len(embs)):
            part = embs[done:done + last - first]
            read = file.read_into(first, part)
            if read is not part:
                part[:] = read
            done += last - first
        return embs


def _facts(embeddings):
    """Return the facts that all parts of one file must share, in addition to how they were made, in words, a dict."""
    return {'dimensions': embeddings.shape[1], 'pooled tracklets': embeddings.pooled, 'file ids': embeddings.has_fids,
            'recorded parameters': bool(embeddings.parameters)}


def shard_names(path, count):
    """Return the paths of `count` shards of an `.h5` file, NAME-00002-of-00010.h5; None: only the file itself."""
    stem = os.path.splitext(path)[0]
    return [path] if count is None else [f'{stem}-{number:05}-of-{count:05}.h5' for number in range(count)]


def in_order(paths):
    """Return the embedding files that a flag names, in the order of their rows.

    Args:
        paths: a list of paths; one with a `*` that is not a file stands for the files that match it.

    Returns: a list of paths. Shards, as `shard_names` names them, are complete and sorted; others keep their order.

    Raises:
        InputError: nothing matches a pattern, a file is named twice, or shards are missing or of several files.
    """
    found = []
    for path in map(str, paths):
        matching = sorted(glob.glob(path)) if '*' in path and not os.path.exists(path) else [path]
        if not matching:
            raise InputError(f'There is no embedding file that matches {path}.')
        found += matching
    twin = next((path for path, times in collections.Counter(found).items() if times > 1), None)
    if twin:
        raise InputError(f'{twin} is named twice.')
    parts = {path: SHARD_NAME.fullmatch(path) for path in found}
    if not any(parts.values()):
        return found
    wholes = {(part[1], part[3]) if part else path: path for path, part in parts.items()}
    if len(wholes) > 1:
        raise InputError(f'{" and ".join(list(wholes.values())[:2])} are not parts of one file: name all parts of one '
                         f'file, and nothing else.')
    [(stem, count)] = wholes
    number_of = {path: int(part[2]) for path, part in parts.items()}
    numbers = set(number_of.values())
    if max(numbers) >= int(count):
        path = max(number_of, key=number_of.get)
        raise InputError(f'{path} has a number that {int(count)} parts, counted from 0, do not reach: rename it.')
    missing = int(count) - len(numbers)
    if missing:
        # The count is only a name's: there may be far too many missing numbers to list.
        some = itertools.islice((number for number in itertools.count() if number not in numbers), min(missing, 3))
        some = ', '.join(f'{stem}-{number:05}-of-{count}.h5' for number in some)
        raise InputError(f'{missing} of {int(count)} parts are missing: {some}{", …" if missing > 3 else ""}. Name all of '
                         f'them; embed.py --resume embeds those that do not exist.')
    return sorted(found, key=number_of.get)


def name_of_whole(paths):
    """Return the `.h5` path whose shards some paths are; where they are not shards, the first path."""
    first = in_order(paths)[0]
    part = SHARD_NAME.fullmatch(first)
    return f'{part[1]}.h5' if part else first


def open_embeddings(paths):
    """Open the embedding files that a flag names, a list as `in_order` takes it, as one.

    Returns: `Embeddings` or `Shards`.
    """
    paths = in_order(paths)
    return Embeddings(paths[0]) if len(paths) == 1 else Shards(paths)

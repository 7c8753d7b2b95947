"""The benchmarks' rule: a query ignores images of its own identity in its own camera, and junk."""
import functools
import re

import numpy as np

from excluders import _same_key
from tripletreid.errors import InputError
from tripletreid.names import JUNK


class SameCameraExcluder:
    """Ignores the gallery images of the query's identity in the query's camera, and all junk (identity -1).

    Subclasses give the `pattern`: a regular expression that is searched in the file's name (in the whole file id if the
    pattern contains a slash), with named groups `pid` and `cid`.

    junk: bool [G], the gallery images that every query ignores.
    """
    pattern = None
    groups = ('pid', 'cid')

    def __init__(self, gallery_fids, pattern=None):
        """Read the file names of a gallery.

        Args:
            gallery_fids: file ids [G].
            pattern: used instead of the class's own.

        Raises:
            InputError: a file name that does not match the pattern.
        """
        self.pattern = pattern or self.pattern
        ids = self.ids(gallery_fids)
        self.junk = np.array([pid == JUNK for pid, _ in ids], dtype=bool)
        self.same_person_and_camera = _same_key.SameKey(ids)

    def __call__(self, query_fids):
        """Return the images that each query ignores: bool [Q, G] for file ids [Q]."""
        ignored = self.same_person_and_camera(self.ids(query_fids))
        ignored |= self.junk[None]
        return ignored

    def ids(self, fids):
        """Return the identity and the camera of each file id: a list of (str, str) [N]."""
        search = re.compile(self.pattern).search
        whole = '/' in self.pattern
        ids = []
        for fid in fids:
            match = search(fid if whole else fid.rpartition('/')[2])
            both = match.group(*self.groups) if match else (None, None)
            if None in both:
                raise InputError(f'The file name {fid} does not fit the pattern {self.pattern} of the excluder.')
            ids.append(both)
        return ids


def with_pattern(excluder, pattern, flag):
    """Return an excluder class with the pattern of a flag.

    Args:
        excluder: SameCameraExcluder or a subclass; its `groups` are the named groups that the pattern needs.
        pattern: regular expression.
        flag: example of the flag's value, for the message.

    Raises:
        InputError: not a regular expression, or one without the groups.
    """
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise InputError(f'{pattern!r} of --excluder is not a regular expression: {error}.') from error
    if not set(excluder.groups) <= set(groups):
        needed = ' and '.join(f'(?P<{group}>…)' for group in excluder.groups)
        raise InputError(f'The pattern {pattern!r} of --excluder needs the named groups {needed}, as in {flag}.')
    return functools.partial(excluder, pattern=pattern)

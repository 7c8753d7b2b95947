"""The benchmarks' rule: a query ignores images of its own identity in its own camera, and junk."""
import functools

import numpy as np

from excluders import _pattern, _same_key
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
        return _pattern.read(self.pattern, self.groups, fids)


def with_pattern(excluder, pattern, example):
    """Return SameCameraExcluder or a subclass with the pattern of a flag; see `_pattern.check`."""
    _pattern.check(pattern, excluder.groups, example)
    return functools.partial(excluder, pattern=pattern)

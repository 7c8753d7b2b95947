"""The benchmarks' rule: images of the query's person in the query's own camera are not looked at, nor is junk."""
import re

import numpy as np

from errors import InputError

JUNK = '-1'


class SameCameraExcluder:
    """Ignores the gallery images that show the query's person in the query's camera, and all junk (identity -1).

    Subclasses give the `pattern`: a regular expression that is searched in the file's name, with named groups
    `pid` and `cid`.
    """
    pattern = None

    def __init__(self, gallery_fids):
        """
        Args:
            gallery_fids: file ids [G].

        Raises:
            InputError: a file name that does not fit the pattern.
        """
        pids, cids = self.ids(gallery_fids)
        self.gallery_pids, self.gallery_cids = pids, cids
        self.junk = pids == JUNK

    def __call__(self, query_fids):
        """What each query ignores: bool [Q, G] for file ids [Q]."""
        pids, cids = self.ids(query_fids)
        same_pid = pids[:, None] == self.gallery_pids[None]
        same_cid = cids[:, None] == self.gallery_cids[None]
        return same_pid & same_cid | self.junk[None]

    def ids(self, fids):
        """Identities and cameras of file ids: two str arrays [N]."""
        search = re.compile(self.pattern).search
        found = [search(fid.rsplit('/', 1)[-1]) for fid in fids]
        for fid, match in zip(fids, found):
            if match is None:
                raise InputError(f'The file name {fid} does not fit the pattern {self.pattern} of the excluder.')
        return np.array([match['pid'] for match in found]), np.array([match['cid'] for match in found])

"""Re-association in a video: a query finds only images of its own sequence N frames later, `--excluder frames_later:N`.

rank-1 is then the fraction of persons that are recognised N frames later among those in view. The names of crops are those
of the layout `mot`; other names need a pattern, `--excluder frames_later:N:PATTERN`.
"""
import functools
import re

import numpy as np

from excluders import _pattern, _same_key
from tripletreid.errors import InputError

EXAMPLES = ('MOT17-02/3_000001.png', 'MOT17-02/4_000026.png')
EXAMPLE_ARGUMENT = '25'
PATTERN = r'(?P<sid>.+)/[^/]*_(?P<frame>\d+)\.[^./]+$'
GROUPS = ('sid', 'frame')


def with_argument(text):
    """Return the excluder of 'N' or 'N:PATTERN'; `_pattern.read` describes where the pattern is searched.

    Raises:
        InputError: not a number of frames, not a regular expression, or one without the groups `sid` and `frame`.
    """
    count, _, pattern = text.partition(':')
    if not re.fullmatch(r'[1-9]\d{0,8}', count):
        raise InputError(f'--excluder frames_later:{text} needs a number of frames, as in frames_later:25.')
    pattern = pattern or PATTERN
    _pattern.check(pattern, GROUPS, f'frames_later:{count}:{PATTERN}')
    return functools.partial(FramesLaterExcluder, frames=int(count), pattern=pattern)


class FramesLaterExcluder:
    """Ignores the gallery images that are not in the query's sequence, `frames` frames after the query."""

    def __init__(self, gallery_fids, frames, pattern):
        """Read the file names of a gallery.

        Args:
            gallery_fids: file ids [G].
            frames: number of frames between a query and the images that it searches.
            pattern: regular expression with the groups GROUPS.

        Raises:
            InputError: a file name that does not match the pattern, or whose frame is not a number.
        """
        self.frames, self.pattern = frames, pattern
        self.same_time = _same_key.SameKey(self._times(gallery_fids))

    def __call__(self, query_fids):
        """Return the images that each query ignores: bool [Q, G] for file ids [Q]."""
        return np.logical_not(self.same_time([(sid, frame + self.frames) for sid, frame in self._times(query_fids)]))

    def _times(self, fids):
        """Return the sequence and the number of the frame of each file id, a list of (str, int) [N]."""
        times = _pattern.read(self.pattern, GROUPS, fids)
        for fid, (_, frame) in zip(fids, times):
            if not re.fullmatch(r'[0-9]{1,18}', frame):
                raise InputError(f'The frame {frame!r} of {fid} is not a number: the pattern is {self.pattern}.')
        return [(sid, int(frame)) for sid, frame in times]

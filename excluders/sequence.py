"""Frames of one sequence: a query ignores images of its own identity in its own sequence, `--excluder sequence:PATTERN`."""
import functools
import re

from excluders import _same_camera
from tripletreid.errors import InputError

EXAMPLES = ('anna/walk1_0001.jpg', 'bob/walk2_0001.jpg')
EXAMPLE_ARGUMENT = '^(?P<pid>[^/]+)/(?P<sid>[^_]+)_'


def with_argument(pattern):
    """Return the excluder of a pattern with the groups `pid` and `sid`, which is searched as `SameCameraExcluder` says.

    Raises:
        InputError: not a regular expression, or one without these groups.
    """
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise InputError(f'{pattern!r} of --excluder is not a regular expression: {error}.') from error
    if not {'pid', 'sid'} <= set(groups):
        raise InputError(f'The pattern {pattern!r} of --excluder needs the named groups (?P<pid>…) and (?P<sid>…), as in '
                         f'sequence:{EXAMPLE_ARGUMENT}.')
    return functools.partial(SameSequenceExcluder, pattern=pattern)


class SameSequenceExcluder(_same_camera.SameCameraExcluder):
    """Ignores the gallery images of the query's identity in the query's sequence, and all junk (identity -1)."""
    groups = ('pid', 'sid')

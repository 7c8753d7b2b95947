"""Frames of one sequence: a query ignores images of its own identity in its own sequence, `--excluder sequence:PATTERN`."""
from excluders import _same_camera

EXAMPLES = ('anna/walk1_0001.jpg', 'bob/walk2_0001.jpg')
EXAMPLE_ARGUMENT = '^(?P<pid>[^/]+)/(?P<sid>[^_]+)_'


class SameSequenceExcluder(_same_camera.SameCameraExcluder):
    """Ignores the gallery images of the query's identity in the query's sequence, and all junk (identity -1)."""
    groups = ('pid', 'sid')


def with_argument(pattern):
    """Return the excluder of a pattern with the groups `pid` and `sid`, which is searched as `SameCameraExcluder` says.

    Raises:
        InputError: not a regular expression, or one without these groups.
    """
    return _same_camera.with_pattern(SameSequenceExcluder, pattern, f'sequence:{EXAMPLE_ARGUMENT}')

"""Your own file names: the benchmarks' rule with your own regular expression, `--excluder regex:PATTERN`."""
import functools
import re

from excluders import _same_camera
from tripletreid.errors import InputError

EXAMPLES = ('door-anna-1.jpg', 'hall-bob-1.jpg')
EXAMPLE_ARGUMENT = '^(?P<cid>[^-]+)-(?P<pid>[^-]+)-'


def with_argument(pattern):
    """Return the excluder of a pattern, which is used as `SameCameraExcluder` says.

    Raises:
        InputError: not a regular expression, or one without the groups `pid` and `cid`.
    """
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise InputError(f'{pattern!r} of --excluder is not a regular expression: {error}.') from error
    if not {'pid', 'cid'} <= set(groups):
        raise InputError(f'The pattern {pattern!r} of --excluder needs the named groups (?P<pid>…) and (?P<cid>…), as in '
                         f'regex:{EXAMPLE_ARGUMENT}.')
    return functools.partial(_same_camera.SameCameraExcluder, pattern=pattern)

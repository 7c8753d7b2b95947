"""Your own file names: the benchmarks' rule with your own regular expression, `--excluder regex:PATTERN`."""
from excluders import _same_camera

EXAMPLES = ('door-anna-1.jpg', 'hall-bob-1.jpg')
EXAMPLE_ARGUMENT = '^(?P<cid>[^-]+)-(?P<pid>[^-]+)-'


def with_argument(pattern):
    """Return the excluder of a pattern with the groups `pid` and `cid`, which is searched as `SameCameraExcluder` says.

    Raises:
        InputError: not a regular expression, or one without these groups.
    """
    return _same_camera.with_pattern(_same_camera.SameCameraExcluder, pattern, f'regex:{EXAMPLE_ARGUMENT}')

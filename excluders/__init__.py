"""Which gallery images a query does not look at: one file a rule, its name is the value of `--excluder`."""
import functools
import re

from tripletreid import plugins
from tripletreid.errors import InputError


def names():
    """The names of all excluders."""
    return plugins.choices('excluders')


def load(name):
    """The excluder that `--excluder` names.

    Args:
        name: the name of a file in this folder, or `regex:PATTERN` for file names of one's own: the rule of the
            benchmarks with PATTERN as the `pattern` of `SameCameraExcluder`.

    Returns: a callable; from gallery file ids [G] it makes an object that answers, for query file ids [Q], what to
        ignore as bool [Q, G], an array of the caller's own. It may have `junk`, bool [G]: images that no query looks at.

    Raises:
        InputError: no such file, no regular expression, or one without the groups `pid` and `cid`.
    """
    kind, _, pattern = name.partition(':')
    if kind != 'regex':
        return plugins.load('excluders', name).Excluder
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise InputError(f'{pattern!r} of --excluder is not a regular expression: {error}.') from error
    if not {'pid', 'cid'} <= set(groups):
        raise InputError(f'The pattern {pattern!r} of --excluder needs the named groups (?P<pid>…) and (?P<cid>…).')
    from excluders import _same_camera
    return functools.partial(_same_camera.SameCameraExcluder, pattern=pattern)

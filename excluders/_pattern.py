"""Regular expressions that read groups such as identity and camera off file names."""
import re

from tripletreid.errors import InputError


def check(pattern, groups, example):
    """Check the pattern of a flag.

    Args:
        pattern: regular expression.
        groups: the named groups that it needs.
        example: a valid value of --excluder, for the message.

    Raises:
        InputError: not a regular expression, or one without the groups.
    """
    try:
        found = re.compile(pattern).groupindex
    except re.error as error:
        raise InputError(f'{pattern!r} of --excluder is not a regular expression: {error}.') from error
    if not set(groups) <= set(found):
        needed = ' and '.join(f'(?P<{group}>…)' for group in groups)
        raise InputError(f'The pattern {pattern!r} of --excluder needs the named groups {needed}, as in {example}.')


def read(pattern, groups, fids):
    """Read groups off file ids.

    Args:
        pattern: regular expression that is searched in a file's name, or in the whole file id if it contains a slash.
        groups: names of its groups.
        fids: file ids [N].

    Returns: the groups of each file id, a list of tuples of str [N].

    Raises:
        InputError: a file id that does not fit the pattern.
    """
    names = fids if '/' in pattern else [fid.rpartition('/')[2] for fid in fids]
    matches = map(re.compile(pattern).search, names)
    values = [match.group(*groups) if match else (None,) for match in matches]
    misfit = next((fid for fid, found in zip(fids, values) if None in found), None)
    if misfit is not None:
        raise InputError(f'The file name {misfit} does not fit the pattern {pattern} of the excluder.')
    return values

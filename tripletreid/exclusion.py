"""The excluder that `--excluder` names: which gallery images a query ignores."""
import collections
import itertools

from tripletreid import plugins
from tripletreid.errors import InputError, warn
from tripletreid.names import JUNK, is_junk, spelling_key

SHOWN = 3  # Examples in a warning.
READ_AT_ONCE = 1 << 14  # File names; a list of the ids of all takes over 100 bytes per image.


def load(text):
    """Load an excluder.

    Args:
        text: the name of a file in excluders/; or NAME:ARGUMENT for one that takes an argument, as `regex:PATTERN`.

    Returns: a callable that takes gallery file ids [G] and returns an `Excluder`: a callable that takes query file ids
        [Q] and returns the images to ignore, bool [Q, G], an array of the caller's own. It may have `junk`, bool [G]:
        images that every query ignores; and `ids(fids)`: (identity, camera) of each file id.

    Raises:
        InputError: no such file, a missing or needless argument, or one that the excluder refuses.
    """
    name, colon, argument = text.partition(':')
    module = plugins.load('excluders', name)
    if hasattr(module, 'with_argument'):
        return module.with_argument(argument)
    if colon:
        raise InputError(f'The excluder {name} takes no argument after a colon: {text}.')
    return module.Excluder


def warn_of_disagreement(name, excluder, query_set, gallery_set):
    """Warn where an excluder understands file names differently from how the csv files name identities.

    Images of a query that it should ignore then count as matches, or images of others are ignored:
    - junk that it does not ignore counts as an identity;
    - file names that spell a camera or an identity in two ways, as c1 and c01: their images are not of one camera;
    - file names of several identities in which it reads one identity.

    Args:
        name: the value of --excluder.
        excluder: as `load` returns it.
        query_set, gallery_set: `Dataset`s.
    """
    read = getattr(excluder([]), 'ids', None)
    sets = query_set, gallery_set
    if read is None:
        junk = sum(int(dataset.junk.sum()) for dataset in sets)
    else:
        readings = [_readings(dataset, read) for dataset in sets]
        junk = sum(is_junk(pid) and read_pid != JUNK for pid, (read_pid, _) in set().union(*readings))
        _warn_of_spellings(name, *readings)
    if junk:
        warn(f'{query_set.path} and {gallery_set.path} hold junk, images of the identity {JUNK}, which the excluder {name} '
             f'does not ignore: {JUNK} counts as an identity. Remove these rows.')


def _readings(dataset, read):
    """Return the set of (identity, (identity that the excluder reads, camera)) of a dataset."""
    found = set()
    for start in range(0, len(dataset), READ_AT_ONCE):
        rows = slice(start, start + READ_AT_ONCE)
        found.update(zip(dataset.pids[rows], read(dataset.fids[rows])))
    return found


def _warn_of_spellings(name, *readings):
    """Warn of two keys of one identity and camera and of one identity for several, given the `_readings` of queries and
    gallery."""
    keys, pids = ([collections.defaultdict(set) for _ in readings] for _ in range(2))
    for number, each in enumerate(readings):
        for pid, (read_pid, camera) in each:
            keys[number][pid, spelling_key(camera)].add((read_pid, camera))
            pids[number][read_pid].add(pid)
    split = [group for key in sorted(keys[0].keys() & keys[1].keys())
             if len(group := keys[0][key] | keys[1][key]) > 1]
    if split:
        shown = '; '.join(' and '.join(f'{pid} in {camera}' for pid, camera in sorted(group)) for group in split[:SHOWN])
        warn(f'the excluder {name} takes images of {len(split)} pairs of an identity and a camera for others, because their '
             f'file names spell them differently, so that images of the query\'s own camera count as matches: {shown}'
             f'{"; …" if len(split) > SHOWN else ""}.')
    merged = {pid: group for pid in sorted(pids[0].keys() & pids[1].keys())
              if len(group := pids[0][pid] | pids[1][pid]) > 1}
    if merged:
        pid, group = next(iter(merged.items()))
        warn(f'the excluder {name} reads one identity in file names of several: {pid} for '
             f'{", ".join(itertools.islice(sorted(group), SHOWN))}{", …" if len(group) > SHOWN else ""}. It ignores images '
             f'of others, which makes the task easier.')

"""Knowledge about unlabelled images: names of some, and pairs that cannot be one individual."""
import re

import numpy as np

from tripletreid.clustering import partition
from tripletreid.errors import InputError

UNKNOWN = -1


def groups_by_pattern(fids, pattern, flag):
    """Return the text that a regular expression finds in each file id, as an array of str [N].

    Args:
        fids: file ids [N].
        pattern: its groups are joined; without a group the whole match counts.
        flag: name of the flag, for messages.

    Raises:
        InputError: not a regular expression, or a file id that it does not match.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f'{pattern!r} of {flag} is not a regular expression: {error}.') from error
    found = [search(fid) for fid in fids]
    missing = [fid for fid, match in zip(fids, found) if match is None]
    if missing:
        raise InputError(f'The pattern {pattern!r} of {flag} matches nothing in {len(missing)} of {len(fids)} file names, '
                         f'such as {missing[0]}.')
    return np.array(['\0'.join(each or '' for each in match.groups() or (match[0],)) for match in found], object)


def without_impossible(graph, moments, names):
    """Remove edges between images that cannot show one individual.

    Args:
        graph: sparse [N, N].
        moments: number of the camera and time of each image, int [N], UNKNOWN where there is none: images of one moment
            show different individuals.
        names: number of the known name of each image, int [N], UNKNOWN where it has none.
    """
    entries = graph.tocoo()
    rows, columns = entries.row, entries.col
    together = (moments[rows] == moments[columns]) & (moments[rows] != UNKNOWN)
    together &= ~((names[rows] == names[columns]) & (names[rows] != UNKNOWN))
    apart = (names[rows] != names[columns]) & (names[rows] != UNKNOWN) & (names[columns] != UNKNOWN)
    kept = ~(together | apart)
    from scipy import sparse
    return sparse.csr_array((entries.data[kept], (rows[kept], columns[kept])), graph.shape)


def separated(labels, graph, moments, names):
    """Split clusters that hold images of different individuals, and join those that hold one name.

    The images of an affected cluster are joined again from the smallest distance on, except where that would put two
    images of one moment or two names together. Images of one name are together from the start.

    Args:
        labels: int64 [N], -1 for outliers.
        graph: as `without_impossible` returns it.
        moments, names: as for `without_impossible`.

    Returns: labels int64 [N].
    """
    from scipy.cluster.hierarchy import DisjointSet
    labels = labels.copy()
    named = np.flatnonzero(names != UNKNOWN)
    # An outlier with a name is joined with the other images of that name.
    pools = DisjointSet(range(len(labels)))
    for members in (*_members(labels), *_members(names)):
        _join_all(pools, members)
    pool = np.array([pools[row] for row in range(len(labels))])
    affected = np.isin(pool, pool[named])
    for members in _members(labels):
        known_moments = moments[members][moments[members] != UNKNOWN]
        if len(np.unique(known_moments)) < len(known_moments):
            affected |= pool == pool[members[0]]
    if not affected.any():
        return labels

    rows = np.flatnonzero(affected)
    sets = DisjointSet(range(len(labels)))
    for members in _members(names):
        _join_all(sets, members)
    facts = {}
    for row in rows:
        set_facts = facts.setdefault(sets[row], (set(), set()))
        if moments[row] != UNKNOWN:
            set_facts[0].add(moments[row])
        if names[row] != UNKNOWN:
            set_facts[1].add(names[row])
    entries = graph[rows].tocoo()
    first, second = rows[entries.row], entries.col
    inside = (first < second) & (labels[first] == labels[second]) & (labels[first] >= 0)
    order = np.argsort(entries.data[inside], kind='stable')
    for one, other in zip(first[inside][order].tolist(), second[inside][order].tolist()):
        one, other = sets[one], sets[other]
        if one == other:
            continue
        (moments_one, names_one), (moments_other, names_other) = facts[one], facts[other]
        if moments_one & moments_other or len(names_one | names_other) > 1:
            continue
        sets.merge(one, other)
        facts[sets[one]] = moments_one | moments_other, names_one | names_other
    first_members = {}
    roots = np.array([first_members.setdefault(sets[row], row) for row in rows])
    # An outlier without a name stays one; the rest is numbered after the clusters that are not affected.
    stays = (labels[rows] >= 0) | (names[rows] != UNKNOWN)
    labels[rows] = np.where(stays, labels.max(initial=-1) + 1 + np.unique(roots, return_inverse=True)[1], -1)
    return partition.without_small(labels, 1)


def _members(labels):
    """Return the rows of each label of 0 or more, a list of int arrays."""
    order = np.argsort(labels, kind='stable')
    order = order[labels[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _join_all(sets, numbers):
    """Join the sets of all numbers of an array."""
    for number in numbers[1:].tolist():
        sets.merge(numbers[0].item(), number)

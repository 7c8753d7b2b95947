"""The vote of a photo's nearest images for an identity, and its accuracy on labelled photos."""
import collections
from typing import NamedTuple

import numpy as np

from tripletreid.evaluation import chunks, neighbours
from tripletreid.names import is_junk

IMAGES_AT_ONCE = 4096  # Images of a gallery that are compared with a batch of photos.
UNKNOWN_NAMED = (0.1, 0.01, 0.001)  # FARs at whose thresholds the accuracy is measured.
KNOWN_NAMED = (0.99, 0.9, 0.5)  # Without unknown identities: fractions of the photos that get a name.


class Vote(NamedTuple):
    """The most frequent identity of some results, its number of results, and the number of all of them."""
    name: str
    votes: int
    count: int


def vote(names):
    """Return the `Vote` of names, nearest first, of which None has no vote; of equally frequent names the nearest wins."""
    names = [name for name in names if name is not None]
    if not names:
        return None
    name, votes = collections.Counter(names).most_common(1)[0]
    return Vote(name, votes, len(names))


class Labelled(NamedTuple):
    """A labelled photo and its nearest gallery images, without those that it ignores.

    is_known: whether another image of its identity is in the gallery.
    near: identities, None for junk, and distances of the images, nearest first, a list of pairs.
    """
    name: str
    is_known: bool
    near: list

    def vote(self, threshold):
        """Return the `Vote` of the images within a threshold, None for all of them; None if there are none."""
        return vote([name for name, distance in self.near if threshold is None or distance <= threshold])

    def nearest(self):
        """Return the smallest threshold at which the photo gets a name; infinite if it never does."""
        return min((distance for name, distance in self.near if name is not None), default=np.inf)


class Accuracy(NamedTuple):
    """Votes within a threshold, None for no threshold, as numbers of photos.

    right, wrong, nobody: photos of known identities, by the name that they get.
    named, unnamed: photos of unknown identities that get a name, and that get none.
    """
    threshold: float | None
    right: int
    wrong: int
    nobody: int
    named: int
    unnamed: int

    @property
    def known(self):
        """Number of photos of known identities."""
        return self.right + self.wrong + self.nobody

    @property
    def unknown(self):
        """Number of photos of unknown identities."""
        return self.named + self.unnamed


def labelled_photos(retrieval, count):
    """Search a gallery with labelled photos; junk among them is skipped.

    Args:
        retrieval: `Retrieval` of the photos and the gallery, whose junk has the identity None.
        count: number of nearest images per photo.

    Returns: list of `Labelled`.
    """
    nearest, known = neighbours.nearest(retrieval, count), _are_known(retrieval)
    names = retrieval.gallery_set.pids
    return [Labelled(name, bool(is_known), [(names[near], distance) for near, distance in zip(rows, distances) if near >= 0])
            for name, is_known, rows, distances in zip(retrieval.query_set.pids, known, nearest.rows.tolist(),
                                                       nearest.distances.tolist()) if not is_junk(name)]


def _are_known(retrieval):
    """Return which photos have an image of their identity in the gallery that they do not ignore, bool [Q]."""
    numbers = {name: number for number, name in enumerate(set(retrieval.query_set.pids))}
    photos, images = (np.array([numbers.get(name, -1) for name in each.pids], np.int64)
                      for each in (retrieval.query_set, retrieval.gallery_set))
    known = np.zeros(len(photos), bool)
    for some in chunks.slices(len(images), IMAGES_AT_ONCE):
        ignored = retrieval.excluder(retrieval.gallery_set.fids[some])
        for batch in chunks.slices(len(photos), retrieval.batch_size):
            found = (photos[batch, None] == images[some]) & ~ignored(retrieval.query_set.fids[batch])
            known[batch] |= found.any(axis=1)
    return known


def accuracy(photos, threshold):
    """Return the `Accuracy` of votes within a threshold, or None, for a list of `Labelled`."""
    counts = collections.Counter()
    for photo in photos:
        found = photo.vote(threshold)
        if photo.is_known:
            counts['nobody' if found is None else 'right' if found.name == photo.name else 'wrong'] += 1
        else:
            counts['unnamed' if found is None else 'named'] += 1
    return Accuracy(threshold, **{name: counts[name] for name in Accuracy._fields[1:]})


def thresholds(photos):
    """Return thresholds, largest first: at which some fractions of the photos of unknown identities get a name, or of all
    photos where there are no unknown identities. Arguments as `accuracy`."""
    unknown = sorted(photo.nearest() for photo in photos if not photo.is_known)
    distances, fractions = (unknown, UNKNOWN_NAMED) if unknown else (sorted(map(Labelled.nearest, photos)), KNOWN_NAMED)
    # A fraction of too few photos is nobody.
    numbers = [int(fraction * len(distances) + 1e-9) for fraction in fractions]
    return [distances[number - 1] for number in numbers if number and np.isfinite(distances[number - 1])]


def sentence(measured, photos, count):
    """Return a sentence about an `Accuracy`; `photos` says which ones, `count` is the number of nearest images that vote."""
    nobody, unknown = measured.nobody, ''
    if measured.unknown:
        unknown = f' {measured.named / measured.unknown:.1%} of {measured.unknown} photos of unknown identities get a name.'
    if not measured.known:
        return f'There are no {photos}, so the accuracy of the vote cannot be measured.{unknown}'
    return (f'A vote of the {count} nearest is right for {measured.right / measured.known:.1%} of {measured.known} {photos}'
            f'{f"; {nobody / measured.known:.1%} get no vote" if nobody else ""}.{unknown}')


def table(measured):
    """Return lines of text, a head and one line per `Accuracy`."""
    lines = [f'{"threshold":>10}{"right":>9}{"wrong":>9}{"nobody":>9}{"unknown named":>16}']
    for each in measured:
        threshold = 'none' if each.threshold is None else f'{each.threshold:.4g}'
        known = ''.join(f'{number / each.known:9.2%}' if each.known else f'{"-":>9}' for number in each[1:4])
        unknown = f'{each.named / each.unknown:.2%}' if each.unknown else '-'
        lines.append(f'{threshold:>10}{known}{unknown:>16}')
    return lines

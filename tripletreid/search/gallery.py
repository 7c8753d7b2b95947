"""An open gallery to search, and the results of a search as JSON and as text."""
import collections
import json
import os
from typing import NamedTuple

import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation import chunks
from tripletreid.evaluation.distances import check_dimensions
from tripletreid.evaluation.neighbours import PreparedGallery
from tripletreid.files import write_json
from tripletreid.image_root import image_path, is_inside
from tripletreid.names import is_junk
from tripletreid.search import votes

MOST_COPIES = 8  # Copies of a photo in the gallery that a search can skip.
READ_AT_ONCE = 4096  # Rows of the gallery.
VOTES_SAMPLED = 500  # Gallery images by which the accuracy of the vote is measured.


class Found(NamedTuple):
    """A result of a search.

    rank: from 1.
    row: in the gallery.
    fid: file id.
    distance: to the photo, in the metric's own unit.
    same: whether it is near enough to be the same identity, None without a threshold.
    name: its identity, None for junk and in a gallery without identities.
    """
    rank: int
    row: int
    fid: str
    distance: float
    same: bool | None
    name: str | None = None


class Gallery:
    """Open embeddings that are searched with one photo at a time.

    Attributes:
        name: the path that the user gave.
        embeddings: open `Embeddings` with file ids.
        metric: one of METRICS.
        threshold: the largest distance that means the same identity, or None.
        names: identities of the rows, object array [N], None for junk; or None for a gallery without identities.
        accuracy: a sentence about the accuracy of the vote on labelled photos, or None.
    """

    def __init__(self, name, embeddings, metric, threshold=None, image_root=None, allow_outside_root=False, names=None):
        """
        Args:
            name, embeddings, metric, threshold: see above.
            names: identities of the rows [N], or None.
            image_root: folder of the images, None if unknown.
            allow_outside_root: whether to show images outside the image root.

        Raises:
            InputError: embeddings that cannot be compared.
        """
        self.name, self.embeddings, self.metric, self.threshold = name, embeddings, metric, threshold
        self.names = None if names is None else np.array([None if is_junk(name) else name for name in names], object)
        self.image_root, self.allow_outside_root, self.accuracy = image_root, allow_outside_root, None
        self._prepared = PreparedGallery(embeddings, metric)

    def __len__(self):
        return len(self.embeddings)

    def fid(self, row):
        """Return the file id of a row."""
        return self.embeddings.fids_of_rows(row, row + 1)[0]

    def path(self, row):
        """Return the path of a row's image; None if it is missing or outside of the image root."""
        if self.image_root is None:
            return None
        path = image_path(self.image_root, self.fid(row))
        if not (self.allow_outside_root or is_inside(path, os.path.realpath(self.image_root))):
            return None
        return path if os.path.isfile(path) else None

    def search(self, emb, count, but=()):
        """Find the nearest images, nearest first, at equal distances in the order of the gallery.

        Args:
            emb: float32 [D].
            count: maximum number of images.
            but: rows to skip.

        Returns: a list of `Found`.

        Raises:
            InputError: another number of dimensions.
        """
        rows = [(row, distance) for row, distance in self._nearest(emb, count + len(but)) if row not in but]
        return [Found(rank, row, self.fid(row), distance, None if self.threshold is None else distance <= self.threshold,
                      None if self.names is None else self.names[row])
                for rank, (row, distance) in enumerate(rows[:count], 1)]

    def nearest(self, embs, count):
        """Return the nearest images of photos as `Neighbours`, given their embeddings [N, D].

        Raises:
            InputError: another number of dimensions.
        """
        check_dimensions(embs, self.embeddings)
        return self._prepared.nearest(embs, min(count, len(self)))

    def _nearest(self, emb, count):
        """Return (row, distance) of the nearest images."""
        nearest = self.nearest(emb[None], count)
        return list(zip(nearest.rows[0].tolist(), nearest.distances[0].tolist()))

    def copies(self, emb, contents):
        """Return the rows of the nearest images whose files have the content of a photo: the photo itself.

        Args:
            emb: the photo's embedding, float32 [D], or the mean of several photos' embeddings.
            contents: bytes of the photos, a list.
        """
        rows = [row for row, _ in self._nearest(emb, MOST_COPIES)]
        return [row for row in rows if (path := self.path(row)) and any(_holds(path, content) for content in contents)]

    def vote(self, found):
        """Return the `Vote` of the results that are near enough; None if there are none, or no identities."""
        return votes.vote([each.name for each in found if each.same is not False])

    def vote_accuracy(self, count):
        """Return a sentence about how often the vote is right: `self.accuracy`, or else for gallery images, each searched in
        the rest of the gallery.

        Args:
            count: number of results that vote.
        """
        if self.accuracy:
            return self.accuracy
        sizes = collections.Counter(self.names)
        rows = np.flatnonzero([name is not None and sizes[name] > 1 for name in self.names])
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:VOTES_SAMPLED])
        if not len(rows):
            return 'No identity has two images in the gallery, so the accuracy of the vote cannot be measured.'
        nearest = self.nearest(chunks.read_rows(self.embeddings, rows, READ_AT_ONCE), count + 1)
        photos = [votes.Labelled(self.names[row], True, [(self.names[near], distance) for near, distance in
                                                         zip(near_rows, distances) if near != row][:count])
                  for row, near_rows, distances in zip(rows, nearest.rows, nearest.distances)]
        which = 'gallery images with another image of their identity, each searched in the rest of the gallery'
        return votes.sentence(votes.accuracy(photos, self.threshold), which, count)


def _holds(path, content):
    """Check whether a file has a content."""
    try:
        if os.path.getsize(path) != len(content):
            return False
        with open(path, 'rb') as file:
            return file.read() == content
    except OSError:
        return False


def mean_of(embs):
    """Return the mean of embeddings [N, D] of one identity, float32 [D], as in multi-query (Zheng et al. 2015)."""
    return np.mean(embs, axis=0, dtype=np.float64).astype(np.float32)


def verdict(found, threshold, vote=None):
    """Return a sentence about a list of `Found` and its `Vote`."""
    if not found:
        return 'the gallery has no other image.'
    nearest, name = found[0], f'{vote.name} by {vote.votes} of {vote.count} votes: ' if vote else ''
    if threshold is None:
        return f'{name}the {len(found)} nearest.'
    same = sum(each.same for each in found)
    if not same:
        return (f'nobody. The nearest, {nearest.fid}, is at a distance of {nearest.distance:.4g}, and the same identity '
                f'would be at {threshold:.4g} at most.')
    return f'{name}the same identity in {same} of the {len(found)} nearest, at a distance of {threshold:.4g} at most.'


def table(found):
    """Return lines of text, one per `Found`."""
    words = {True: 'same', False: 'other', None: ''}
    width = max((len(each.name or '') for each in found), default=0)
    names = [f'{each.name or "":{width}}  ' if width else '' for each in found]
    return [f'{each.rank:5}  {each.distance:<10.4g} {words[each.same]:5}  {name}{each.fid}'
            for each, name in zip(found, names)]


class Query(NamedTuple):
    """A search: the name of the photo, its `Found`, the file ids of skipped copies of the photo, and the `Vote` or None."""
    name: str
    found: list
    copies: list = ()
    vote: votes.Vote | None = None


def write_found(path, queries):
    """Write the JSON file, a list with an object per `Query`."""
    write_json(path, [{
        'query': query.name, 'vote': query.vote and query.vote._asdict(), 'skipped_copies': list(query.copies),
        'results': [{'rank': each.rank, 'fid': each.fid, 'distance': each.distance, 'same': each.same, 'name': each.name}
                    for each in query.found]} for query in queries])


def is_found(path):
    """Check whether a file is one of `write_found`."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, list) and bool(content) and all(
        isinstance(each, dict) and set(each) >= {'query', 'results'} for each in content)


def check_names(embeddings):
    """Raise InputError if an embedding file does not name its images, as files of the original."""
    if not embeddings.has_fids:
        raise InputError(f'The images have no names in {embeddings.path}: give their csv file as --gallery, which embeds '
                         f'them again.')

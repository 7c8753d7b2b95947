"""A gallery that is open to be searched, and what a search has found in it, in JSON and in words."""
import json
import os
from typing import NamedTuple

import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation.distances import check_dimensions
from tripletreid.evaluation.neighbours import PreparedGallery
from tripletreid.files import write_json
from tripletreid.image_root import image_path, is_inside


class Found(NamedTuple):
    """One of the nearest images: its rank from 1 on, its row in the gallery, its file id, its distance, and whether it
    is near enough to be the same identity, None where no threshold says it."""
    rank: int
    row: int
    fid: str
    distance: float
    same: bool | None


class Gallery:
    """Open embeddings to be searched with a photo at a time.

    Attributes:
        name: what the user calls it.
        embeddings: open `Embeddings`, which have file ids.
        metric: one of METRICS.
        threshold: the largest distance that means the same identity, or None.
    """

    def __init__(self, name, embeddings, metric, threshold=None, image_root=None, allow_outside_root=False):
        """
        Args:
            name, embeddings, metric, threshold: see above.
            image_root: folder of the images, None where it is not known.
            allow_outside_root: whether to show images that lie elsewhere.

        Raises:
            InputError: embeddings that cannot be compared.
        """
        self.name, self.embeddings, self.metric, self.threshold = name, embeddings, metric, threshold
        self.image_root, self.allow_outside_root = image_root, allow_outside_root
        self._prepared = PreparedGallery(embeddings, metric)

    def __len__(self):
        return len(self.embeddings)

    def fid(self, row):
        """The file id of a row."""
        return self.embeddings.fids_of_rows(row, row + 1)[0]

    def path(self, row):
        """The path of a row's image; None where it is missing or outside of the image root."""
        if self.image_root is None:
            return None
        path = image_path(self.image_root, self.fid(row))
        if not (self.allow_outside_root or is_inside(path, os.path.realpath(self.image_root))):
            return None
        return path if os.path.isfile(path) else None

    def search(self, emb, count, but=None):
        """The nearest images, nearest first, at equal distances in the order of the gallery.

        Args:
            emb: float32 [D].
            count: how many at most.
            but: a row that is not to be found.

        Returns: a list of `Found`.

        Raises:
            InputError: another number of dimensions.
        """
        check_dimensions(emb[None], self.embeddings)
        nearest = self._prepared.nearest(emb[None], min(count + (but is not None), len(self)))
        rows = [(int(row), float(distance)) for row, distance in zip(nearest.rows[0], nearest.distances[0]) if row != but]
        return [Found(rank, row, self.fid(row), distance, None if self.threshold is None else distance <= self.threshold)
                for rank, (row, distance) in enumerate(rows[:count], 1)]


def mean_of(embs):
    """The mean of several embeddings [N, D] of one identity, float32 [D], as multi-query takes it (Zheng et al. 2015)."""
    return np.mean(embs, axis=0, dtype=np.float64).astype(np.float32)


def verdict(found, threshold):
    """What was found, in words: a sentence about a list of `Found`."""
    nearest = found[0]
    if threshold is None:
        return f'the {len(found)} nearest.'
    same = sum(each.same for each in found)
    if not same:
        return (f'nobody. The nearest, {nearest.fid}, is at a distance of {nearest.distance:.4g}, and the same identity '
                f'would be at {threshold:.4g} at most.')
    return f'the same identity in {same} of the {len(found)} nearest, at a distance of {threshold:.4g} at most.'


def table(found):
    """Lines of text, one for each `Found`."""
    words = {True: 'same', False: 'other', None: ''}
    return [f'{each.rank:5}  {each.distance:<10.4g} {words[each.same]:5}  {each.fid}'.rstrip() for each in found]


def write_found(path, queries):
    """Write the JSON file: a list of {"query", "results": [{"rank", "fid", "distance", "same"}]}.

    Args:
        path: of the file.
        queries: {name of a query: list of `Found`}, in order.
    """
    write_json(path, [{'query': name, 'results': [{'rank': each.rank, 'fid': each.fid, 'distance': each.distance,
                                                   'same': each.same} for each in found]} for name, found in queries])


def is_found(path):
    """Whether a file is one of `write_found`."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, list) and bool(content) and all(isinstance(each, dict) and set(each) == {'query', 'results'}
                                             for each in content)


def check_names(embeddings):
    """Raise InputError where an embedding file does not name its images, as those of the original."""
    if not embeddings.has_fids:
        raise InputError(f'The images have no names in {embeddings.path}: give their csv file as --gallery, which embeds '
                         f'them anew.')

"""Open-set identification: is a query's identity in the gallery at all, and who is it?"""
import dataclasses

import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation import chunks, neighbours
from tripletreid.evaluation.bootstrap import interval
from tripletreid.evaluation.verification import RATES

SEED = 0


class KeptRows:
    """Some rows of embeddings, read as if they were all.

    shape: (N, D).
    path: name in messages.
    kept: the rows, ascending int64 [N].
    """

    def __init__(self, embeddings, kept):
        """Keep rows of open `Embeddings`: ascending int64 [N]."""
        self._embeddings, self.kept = embeddings, kept
        self.path, self.shape = embeddings.path, (len(kept), embeddings.shape[1])

    def __len__(self):
        return len(self.kept)

    def rows(self, start, stop):
        """Read the embeddings of the kept rows [start, stop), float32 [stop - start, D]."""
        kept = self.kept[start:stop]
        if not len(kept):
            return np.empty((0, self.shape[1]), np.float32)
        return self._embeddings.rows(kept[0], kept[-1] + 1)[kept - kept[0]]


def without_identities(gallery, gallery_set, query_pids, fraction):
    """Remove a random fraction of the query identities from a gallery, so that their queries have no match.

    Args:
        gallery: open `Embeddings`.
        gallery_set: their `Dataset`.
        query_pids: identities of the queries [Q].
        fraction: of the identities that are in both query and gallery; the choice is the same for every evaluation.

    Returns: `KeptRows`, `Dataset`.

    Raises:
        InputError: the fraction removes no identity, or all of them.
    """
    shared = sorted(set(query_pids) & set(gallery_set.pids))
    count = round(fraction * len(shared))
    if not 0 < count < len(shared):
        raise InputError(f'--hold_out {fraction:g} removes {count} of the {len(shared)} identities that queries and gallery '
                         f'share: choose another fraction.')
    removed = {shared[number] for number in np.random.default_rng(SEED).permutation(len(shared))[:count]}
    kept = np.flatnonzero([pid not in removed for pid in gallery_set.pids])
    return KeptRows(gallery, kept), gallery_set.take(kept)


@dataclasses.dataclass
class FirstPlaces:
    """Distances of the nearest images of queries.

    right: float64 [Q], of matched queries, infinite where the nearest image is of another identity.
    wrong: float64 [U], of unmatched queries, ascending, infinite where the excluder leaves no image.
    pids: identities of the matched queries, object array of str [Q].
    """
    right: np.ndarray
    wrong: np.ndarray
    pids: np.ndarray


def first_places(pairs, ranks, retrieval):
    """Return the `FirstPlaces` of all queries, given the results of `measure` and its `Retrieval`."""
    right = np.full(len(retrieval), np.inf)
    np.minimum.at(right, pairs.query, pairs.distance)
    right[ranks.first_match_rank != 1] = np.inf
    unmatched, pids = np.flatnonzero(~ranks.matched), retrieval.query_set.pids[ranks.matched]
    if not len(unmatched):
        return FirstPlaces(right[ranks.matched], np.zeros(0), pids)
    found = neighbours.nearest(dataclasses.replace(
        retrieval, query_embeddings=chunks.read_rows(retrieval.query_embeddings, unmatched),
        query_set=retrieval.query_set.take(unmatched)), 1)
    wrong = np.where(found.rows[:, 0] >= 0, found.distances[:, 0], np.inf)
    return FirstPlaces(right[ranks.matched], np.sort(wrong), pids)


def open_set(places):
    """Compute open-set identification, for the JSON file (Grother et al. 2019, Phillips et al. 2011).

    The detection and identification rate (DIR, or TPIR) is the fraction of matched queries whose nearest image is a match
    within the threshold; the false alarm rate (FAR, or FPIR) is the fraction of unmatched queries with any image within
    it.

    Args:
        places: `FirstPlaces`.

    Returns: a dict of `queries`, `unmatched_queries` and `dir_at_far`, as docs/formats.md describes.
    """
    count = len(places.wrong)
    distances = np.concatenate([places.right, places.wrong])
    points = []
    for exponent, rate in enumerate(RATES, 1):
        if exponent == 1 or count >= 10 ** exponent:
            first_error = places.wrong[count // 10 ** exponent]
            threshold = max(distances[distances < first_error].tolist(), default=None)
            identified = places.right <= (-np.inf if threshold is None else threshold)
            (ends,) = interval(places.pids, identified[:, None].astype(float))
            points.append({'far': rate, 'dir': float(identified.mean()), 'threshold': threshold, 'interval': ends})
    return {'queries': len(places.right), 'unmatched_queries': count, 'dir_at_far': points}


def open_set_at(places, threshold):
    """Return `dir` and `far` at a threshold, for the JSON file."""
    return {'dir': float((places.right <= threshold).mean()), 'far': float((places.wrong <= threshold).mean())}

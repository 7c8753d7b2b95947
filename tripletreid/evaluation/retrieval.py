"""Queries, the gallery that they search, and how: the input of rankings, neighbours and verification."""
import dataclasses
import functools

import numpy as np

from tripletreid.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Queries, a gallery, and how they are compared.

    query_embeddings, gallery_embeddings: open `Embeddings` or arrays [Q, D], [G, D].
    query_set, gallery_set: the `Dataset`s of their rows.
    excluder: as `exclusion.load` returns it; None: nothing is ignored.
    metric: one of METRICS.
    batch_size: queries at a time.
    workers: the workers that share the work, as `workers.pool` takes them.
    reranking: `Reranking` of these embeddings, which replaces the distances; None: rank by distance.
    """
    query_embeddings: object
    query_set: Dataset
    gallery_embeddings: object
    gallery_set: Dataset
    excluder: object
    metric: str
    batch_size: int = 256
    workers: object = 1
    reranking: object = None

    def __len__(self):
        return len(self.query_set)

    @functools.cached_property
    def numbered_pids(self):
        """The identities of queries and gallery as numbers, int32 [Q] and [G]: -1 where no query has it."""
        number_of = {}
        query_pids = np.array([number_of.setdefault(pid, len(number_of)) for pid in self.query_set.pids], np.int32)
        gallery_pids = (number_of.get(pid, -1) for pid in self.gallery_set.pids)
        return query_pids, np.fromiter(gallery_pids, np.int32, len(self.gallery_set))

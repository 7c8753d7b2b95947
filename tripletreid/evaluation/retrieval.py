"""Queries, the gallery that they search, and how: the input of rankings, neighbours and verification."""
import dataclasses

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

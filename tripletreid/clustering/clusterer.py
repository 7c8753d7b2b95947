"""Clustering of embeddings from end to end: features, graph, sweep, threshold, knowledge."""
import dataclasses

import numpy as np

from tripletreid.clustering import features, knowledge, partition, sweep
from tripletreid.clustering.graph import jaccard_graph
from tripletreid.errors import InputError

# Most pairs with a common neighbour are further apart than this: of 5,000 made-up embeddings 1,740 of 1,764 pairs per
# image. No threshold reaches them, and at 100,000 images they take more than 12 GB. Average linkage needs all of them.
LARGEST_STORED = 0.95


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to cluster.

    method: one of `partition.METHODS`. k1, k2: as for `reranking.k_reciprocal`. min_samples: of DBSCAN.
    min_size: smaller clusters are outliers. whitening: as for `features.features`.
    threshold: a distance; None: chosen by a sweep. individuals: their number, or None if it is not known.
    """
    method: str = 'dbscan'
    k1: int = 30
    k2: int = 6
    min_samples: int = 4
    min_size: int = 2
    whitening: float = 0.5
    threshold: float | None = None
    individuals: int | None = None


@dataclasses.dataclass
class Clustering:
    """The result of `cluster`.

    labels: int64 [N], clusters numbered by falling size, -1 for outliers.
    threshold: of the distances. rows: list of `sweep.Row`, the table of the sweep. chosen: one of the rows.
    doubts: sentences about possible errors.
    """
    labels: np.ndarray
    threshold: float
    rows: list
    chosen: object
    doubts: list


def cluster(embeddings, settings, cameras=None, moments=None, names=None, identities=None, workers=1, batch_size=256):
    """Group embeddings into clusters.

    Args:
        embeddings: open `Embeddings` or an array [N, D].
        settings: `Settings`.
        cameras: name of the camera of each row [N], or None.
        moments, names: as for `knowledge.separated`, or None.
        identities: true numbers of identities [N] that the table compares with, or None; they change nothing else.
        workers, batch_size: as for `jaccard_graph`.

    Returns: `Clustering`.

    Raises:
        InputError: too few images, embeddings that cannot be compared, or only outliers at all thresholds.
    """
    count = len(embeddings)
    if count < 2:
        raise InputError(f'There is nothing to group: {embeddings.path if hasattr(embeddings, "path") else "the input"} has '
                         f'{count} image{"s" * (count != 1)}.')
    prepared = features.features(embeddings, cameras, settings.whitening)
    largest = LARGEST_STORED if settings.method == 'dbscan' else 1.0
    graph = jaccard_graph(prepared, 'euclidean', settings.k1, settings.k2, largest, batch_size, workers)
    unknown = np.full(count, knowledge.UNKNOWN)
    has_knowledge = moments is not None or names is not None
    moments, names = unknown if moments is None else moments, unknown if names is None else names
    if has_knowledge:
        graph = knowledge.without_impossible(graph, moments, names)
    clustering = partition.make(settings.method, graph, settings.min_samples)
    thresholds = clustering.thresholds if settings.threshold is None else [settings.threshold]
    rows = sweep.sweep(clustering, graph, thresholds, identities, settings.min_size)
    chosen = sweep.choose(rows)
    if chosen is None:
        raise InputError(_sentence_of_outliers(count, settings, rows))
    if settings.individuals is not None:
        chosen = sweep.nearest_to_count(rows, settings.individuals)
    labels = clustering.labels(chosen.threshold)
    if has_knowledge:
        labels = knowledge.separated(labels, graph, moments, names)
    labels = partition.by_size(partition.without_small(labels, settings.min_size))
    counts = partition.sizes(labels)
    doubts = [sentence for sentence in (sweep.doubt(counts, count), _doubt_of_outliers(labels)) if sentence]
    return Clustering(labels, chosen.threshold, rows, chosen, doubts)


def _doubt_of_outliers(labels):
    outliers = int((labels < 0).sum())
    if outliers <= 0.5 * len(labels):
        return None
    return (f'{outliers} of {len(labels)} images are outliers: the net hardly recognises individuals here. Try --camera, '
            f'embeddings of another net, or adapt.py.')


def _sentence_of_outliers(count, settings, rows):
    tried = f'{rows[0].threshold:g}' if len(rows) == 1 else f'{rows[0].threshold:g} to {rows[-1].threshold:g}'
    options = '--min_size' + (' and --min_samples' if settings.method == 'dbscan' else '')
    return (f'All {count} images are outliers at threshold {tried}: no {settings.min_size} of them are close enough to form '
            f'a cluster. Lower {options}, or give a larger --threshold.')

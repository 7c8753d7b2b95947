"""Review of clusters, or of labelled identities: which are loose, fall into two groups, or look like one another."""
import dataclasses

import numpy as np

LARGEST_SPLIT = 500  # Clusters with more images are not searched for two groups, which takes their squared number.
CLEAR_GAP = 0.25  # Silhouette of two groups from which on a cluster is suspicious.
NEAREST = 3  # Clusters that are named as similar.


@dataclasses.dataclass
class Reviewed:
    """A cluster and its possible errors.

    name: its identity.
    rows: of its images; the smaller of two groups comes last.
    spread: mean cosine distance of its images to the mean of the others.
    groups: sizes of its two groups, or None where it does not fall into two.
    nearest: list of (name, cosine distance of the means) of the most similar clusters.
    closer: {row: name} of images that are closer to the mean of another cluster than to the others of their own.
    doubts: sentences.
    """
    name: str
    rows: list
    spread: float
    groups: tuple | None
    nearest: list
    closer: dict
    doubts: list


def review(features, identities, moments=None):
    """Review clusters.

    Args:
        features: float32 [N, D] of length 1, see `features.Features`.
        identities: name of the cluster of each row, object array [N].
        moments: text of camera and time of each row, or None.

    Returns: list of `Reviewed`, the most suspicious first, then by falling size.
    """
    names, numbers = np.unique(identities.astype(str), return_inverse=True)
    counts = np.bincount(numbers)
    sums = np.zeros((len(names), features.shape[1]))
    np.add.at(sums, numbers, features)
    means = _unit(sums)
    reviewed = []
    order = np.argsort(numbers, kind='stable')
    for number, rows in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        similar = means @ means[number]
        similar[number] = -np.inf
        best = np.argsort(-similar, kind='stable')[:min(NEAREST, len(names) - 1)]
        embs = features[rows].astype(np.float64)
        own = np.einsum('nd,nd->n', embs, _unit(sums[number] - embs)) if len(rows) > 1 else np.ones(1)
        others = embs @ means.T
        others[:, number] = -np.inf
        foreign = others.argmax(axis=1)
        closer = {int(row): str(names[other]) for row, other, mine, theirs in zip(rows, foreign, own, others.max(axis=1))
                  if len(names) > 1 and theirs > mine}
        groups, rows = _two_groups(embs, rows)
        each = Reviewed(str(names[number]), rows.tolist(), float(1 - own.mean()), groups,
                        [(str(names[other]), float(1 - similar[other])) for other in best], closer, [])
        each.doubts = _doubts(each, None if moments is None else moments[rows])
        reviewed.append(each)
    typical = np.median([each.spread for each in reviewed])
    for each in reviewed:
        if each.spread > 2 * typical and len(each.rows) > 2:
            each.doubts.append(f'It is loose: spread {each.spread:.2f}, typical {typical:.2f}.')
        if each.nearest and each.nearest[0][1] < each.spread:
            each.doubts.append(f'It may be {each.nearest[0][0]}: their means are closer ({each.nearest[0][1]:.2f}) than its '
                               f'own images ({each.spread:.2f}).')
    return sorted(reviewed, key=lambda each: (-len(each.doubts), -len(each.rows)))


def similar_pairs(reviewed):
    """Return the pairs of clusters that look like one, [(name, name, distance)], nearest first."""
    spread = {each.name: each.spread for each in reviewed}
    pairs = {tuple(sorted((each.name, other))): distance for each in reviewed for other, distance in each.nearest
             if distance < max(each.spread, spread[other])}
    return sorted(((*names, distance) for names, distance in pairs.items()), key=lambda pair: pair[2])


def _doubts(reviewed, moments):
    doubts = []
    if reviewed.groups:
        doubts.append(f'It falls into two groups of {reviewed.groups[0]} and {reviewed.groups[1]} images.')
    if moments is not None and len(set(moments)) < len(moments):
        doubts.append(f'{_images(len(moments) - len(set(moments)))} at a camera and time of another image.')
    if reviewed.closer:
        doubts.append(f'{_images(len(reviewed.closer))} closer to another cluster.')
    return doubts


def _images(count):
    return f'{count} image{"s are" if count != 1 else " is"}'


def _two_groups(embs, rows):
    """Sizes of the two groups of a cluster, the larger first, or None; and its rows with the smaller group last."""
    if not 4 <= len(rows) <= LARGEST_SPLIT:
        return None, rows
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.metrics import silhouette_score
    distances = (1 - embs @ embs.T).clip(0)
    np.fill_diagonal(distances, 0)
    labels = fcluster(linkage(distances[np.triu_indices(len(rows), 1)], 'average'), 2, 'maxclust')
    sizes = np.bincount(labels, minlength=3)[1:]
    if sizes.min() < 2 or silhouette_score(distances, labels, metric='precomputed') < CLEAR_GAP:
        return None, rows
    smaller = labels == (1 if sizes[0] < sizes[1] else 2)
    return (int(sizes.max()), int(sizes.min())), np.concatenate([rows[~smaller], rows[smaller]])


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)

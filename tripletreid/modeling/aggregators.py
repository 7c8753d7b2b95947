"""How the embeddings of an image's variants become one: AGGREGATORS[name](embs [A, N, D]) -> [N, D]."""
import numpy as np


def mean(embs):
    """Return the mean over the variants."""
    return np.mean(embs, axis=0)


def normalized_mean(embs):
    """Return the mean over the variants, scaled to length one; an all-zero mean stays zero."""
    means = mean(embs)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    return means / np.where(lengths > 0, lengths, 1)


AGGREGATORS = {'mean': mean, 'normalized_mean': normalized_mean}


def pool_rows(batches, groups):
    """Return the mean embedding of each group of adjoining rows (the frames of a tracklet), streamed.

    Args:
        batches: iterable of arrays [A, B, D], the rows' embeddings in order.
        groups: number of the group of each row, [N], not descending.

    Yields: arrays [A, G, D] with the means of the groups that a batch completes, in order.
    """
    start, total, count = 0, 0.0, 0
    for batch in batches:
        numbers = groups[start:start + batch.shape[1]]
        following = groups[start + 1:start + 1 + batch.shape[1]]
        ends = np.flatnonzero(numbers[:len(following)] != following) + 1
        start += batch.shape[1]
        means = []
        for part in np.split(batch, ends, axis=1)[:-1]:
            means.append((total + part.sum(axis=1, dtype=np.float64)) / (count + part.shape[1]))
            total, count = 0.0, 0
        rest = np.split(batch, ends, axis=1)[-1]
        total, count = total + rest.sum(axis=1, dtype=np.float64), count + rest.shape[1]
        if start == len(groups):
            means.append(total / count)
        if means:
            yield np.stack(means, axis=1).astype(np.float32)

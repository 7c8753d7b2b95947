"""Multi-query: the mean of several images of a query's identity replaces the query."""
import numpy as np

from tripletreid.errors import InputError
from tripletreid.evaluation import chunks


def mean_of_images(query_set, images, image_set, excluder):
    """Average the images of each query's identity in the query's camera.

    The protocol of Market-1501 (Zheng et al. 2015, section 5.2) takes the images of its folder gt_bbox.

    Args:
        query_set: `Dataset` of the queries.
        images, image_set: open `Embeddings` of those images, and their `Dataset`.
        excluder: an excluder with `ids`, as `exclusion.load` returns it.

    Returns: float32 [Q, D].

    Raises:
        InputError: a query without such an image, or an excluder that does not read cameras off file names.
    """
    ids = getattr(excluder([]), 'ids', None)
    if ids is None:
        raise InputError('Multi-query needs an excluder that reads the camera off a file name.')
    number_of = {}
    group_of_query = [number_of.setdefault(key, len(number_of)) for key in ids(query_set.fids)]
    group = np.array([number_of.get(key, -1) for key in ids(image_set.fids)])
    sums, counts = np.zeros((len(number_of), images.shape[1])), np.zeros(len(number_of))
    for start in range(0, len(images), chunks.GALLERY_AT_ONCE):
        embs = images.rows(start, start + chunks.GALLERY_AT_ONCE).astype(np.float64)
        some = group[start:start + len(embs)]
        np.add.at(sums, some[some >= 0], embs[some >= 0])
        np.add.at(counts, some[some >= 0], 1)
    missing = query_set.fids[counts[group_of_query] == 0]
    if len(missing):
        raise InputError(f'{len(missing)} queries have no image of their identity and camera in {image_set.path}, the '
                         f'first of them {missing[0]}.')
    return (sums / counts[:, None])[group_of_query].astype(np.float32)

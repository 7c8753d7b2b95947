"""mAP per pair of query camera and gallery camera."""
import numpy as np

from tripletreid.evaluation import chunks, ranking


def by_camera(retrieval, use_market_ap):
    """Rank the gallery of each camera for the queries of each camera.

    Args:
        retrieval: `Retrieval`, whose excluder reads cameras off file names.
        use_market_ap: which average precision to take.

    Returns: a list of dicts `query_camera`, `gallery_camera`, `mAP` and `queries`, of pairs with a matched query.
    """
    ids = retrieval.excluder([]).ids
    query_cameras, camera_of_query = cameras(retrieval.query_set.fids, ids)
    gallery_cameras, camera_of_image = cameras(retrieval.gallery_set.fids, ids)
    table = []
    for gallery_camera, ranks in zip(gallery_cameras, ranking.rank_parts(retrieval, camera_of_image)):
        ap = ranks.ap_market1501 if use_market_ap else ranks.ap_sklearn
        for number, query_camera in enumerate(query_cameras):
            chosen = ranks.matched & (camera_of_query == number)
            if chosen.any():
                table.append({'query_camera': query_camera, 'gallery_camera': gallery_camera,
                              'mAP': float(ap[chosen].mean()), 'queries': int(chosen.sum())})
    return table


def cameras(fids, ids):
    """Return the different cameras, 2 before 10, and each image's camera number: a list of str and int32 [N]."""
    number_of = {}
    numbers = np.empty(len(fids), np.int32)
    for some in chunks.slices(len(fids), 1 << 16):  # The names of millions of images would take more memory than all else.
        names = fids[np.arange(some.start, some.stop)]  # In an .h5 file, read once.
        numbers[some] = [number_of.setdefault(camera, len(number_of)) for _, camera in ids(names)]
    ordered = in_order(number_of)
    place = {camera: place for place, camera in enumerate(ordered)}
    return ordered, np.array([place[camera] for camera in number_of], np.int32)[numbers]


def in_order(cameras):
    """Sort different cameras, 2 before 10."""
    return sorted(set(cameras), key=lambda camera: (len(camera), camera))

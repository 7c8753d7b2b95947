"""The layer of the report that colours the parts of pictures which make a query and its nearest images near."""
import base64

import numpy as np
import tqdm

from tripletreid.errors import InputError
from tripletreid.visualization.html_page import MOST_MEGABYTES
from tripletreid.visualization.regions_plot import FAR, NEAR, OPACITY


def layer(explainer, found, count):
    """Find the parts of queries and of the images in their lists on a page.

    Args:
        explainer: `Explainer` of the evaluation.
        found: `report.Found`, whose first run is this evaluation.
        count: number of queries, the first ones on the page.

    Returns: a JSON-serialisable dict, as the page's script reads it. Maps are base64 of int8 [h, w], at most 127. A pair
        with an image that is missing or broken has none.

    Raises:
        InputError: the layer would be too large.
    """
    pairs_of_queries = _pairs(found, first_queries(found.runs, count))
    places = explainer.map_shape[0] * explainer.map_shape[1]
    megabytes = sum(map(len, pairs_of_queries.values())) * 2 * places * 4 / 3 / 1e6
    if megabytes > MOST_MEGABYTES:
        raise InputError(f'The regions would add about {megabytes:.0f} MB to the page, more than a browser shows with ease: '
                         f'lower --regions or --top_k.')
    maps = {}
    for q, pairs in tqdm.tqdm(pairs_of_queries.items(), 'Regions', delay=2, leave=False):
        for number, distance in pairs:
            try:
                parts = explainer.explain(q, found.shown[number], distance)
            except InputError:  # The page shows a placeholder and counts the image as missing.
                continue
            maps.setdefault(q, {})[number] = [_encoded(parts.query), _encoded(parts.neighbour)]
    return {'maps': maps, 'shape': explainer.map_shape, 'area': explainer.area, 'method': explainer.method_in_words(),
            'near': NEAR, 'far': FAR, 'opacity': OPACITY}


def first_queries(runs, count):
    """Return the rows of the first queries on a page: with the lowest AP, or that lost most of it, int64 [count].

    Args:
        runs: per evaluation, the data of a page, as `report.Found` has them.
        count: number of queries; all where there are fewer. Queries without a match come last.
    """
    aps = [np.array(run['ap'], float) for run in runs]
    return np.argsort(aps[0] - aps[1] if len(aps) > 1 else aps[0], kind='stable')[:count]


def _pairs(found, queries):
    """Return {row of a query: [(number of an image on the page, distance)]} without excluded images, in the file's order,
    in which queries with the same images are close."""
    run = found.runs[0]
    return {q: [(number, distance) for number, distance, excluded in run['lists'][q] if not excluded] + run['further'][q]
            for q in sorted(queries.tolist())}


def _encoded(parts):
    """Return parts [h, w] as base64 of int8, scaled to the largest one."""
    scaled = np.rint(127 * parts / max(np.abs(parts).max(), 1e-12)).astype(np.int8)
    return base64.b64encode(scaled.tobytes()).decode('ascii')

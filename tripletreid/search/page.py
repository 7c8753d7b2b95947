"""The page of search.py: a file with all results, or a page that requests its results from a server."""
import pathlib

from tripletreid.visualization import html_page
from tripletreid.visualization.thumbnails import data_address, thumbnails

TEMPLATE = pathlib.Path(__file__).with_name('page.html')
WIDTH, HEIGHT = 208, 312  # Maximum size of a picture in pixels; the page shows it at half of that.


def style():
    """Return the stylesheet of the page."""
    return html_page.style(TEMPLATE.with_suffix('.css'))


def script():
    """Return the script of the page."""
    return html_page.script(TEMPLATE.with_suffix('.js'))


def served(gallery, curve, count):
    """Return the page that a server sends, whose stylesheet, script and pictures have their own addresses.

    Args:
        gallery: `Gallery`.
        curve: ROC points of an evaluation, a list of `OperatingPoint` by ascending threshold, empty without an evaluation.
        count: number of results.
    """
    return html_page.served(TEMPLATE, {**_common(gallery, curve, count), 'served': True, 'queries': []})


def write_page(path, gallery, queries, photos, curve, count):
    """Write the page of a search, atomically.

    Args:
        path: of the file.
        gallery, curve, count: as for `served`.
        queries: list of `Query`.
        photos: the paths of the photos of each query.
    """
    files = [path for paths in photos for path in paths]
    files += [gallery.path(each.row) for query in queries for each in query.found]
    addresses = iter(list(map(data_address, thumbnails(files, WIDTH, HEIGHT))))
    pictures = [[next(addresses) for _ in paths] for paths in photos]
    content = [{'name': query.name, 'pictures': addresses_of_photos,
                'doubts': [f'is in the gallery as {fid}, which is skipped' for fid in query.copies],
                'results': [{**result(each), 'picture': next(addresses)} for each in query.found]}
               for query, addresses_of_photos in zip(queries, pictures)]
    html_page.write(path, TEMPLATE, {**_common(gallery, curve, count), 'served': False, 'queries': content})


def result(found):
    """Return a `Found` as the script reads it."""
    return {'rank': found.rank, 'row': found.row, 'fid': found.fid, 'distance': found.distance, 'name': found.name}


def is_page(path):
    """Check whether a file is a page of `write_page`."""
    return html_page.is_made_from(TEMPLATE, path)


def _common(gallery, curve, count):
    """Return the data that the script reads on either page."""
    name = pathlib.Path(gallery.name).name
    return {'about': f'{len(gallery)} images of {name} · {gallery.metric} distance', 'threshold': gallery.threshold,
            'accuracy': None if gallery.names is None else gallery.vote_accuracy(count),
            'curve': [{'threshold': point.threshold, 'tpr': point.tpr, 'fpr': point.fpr} for point in curve]}

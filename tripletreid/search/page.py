"""The page of search.py: one file with all that was found, or what a server sends of which the rest is asked for."""
import base64
import pathlib

from tripletreid.visualization import html_page
from tripletreid.visualization.thumbnails import jpeg, thumbnails

TEMPLATE = pathlib.Path(__file__).with_name('page.html')
WIDTH, HEIGHT = 208, 312  # Maximum size of a picture in pixels; the page shows it at half of that.


def style():
    """Return the stylesheet of the page."""
    return html_page.style(TEMPLATE.with_suffix('.css'))


def script():
    """Return the script of the page."""
    return html_page.script(TEMPLATE.with_suffix('.js'))


def served(gallery, curve):
    """The page that a server sends: stylesheet, script and pictures have addresses of their own.

    Args:
        gallery: `Gallery`.
        curve: points of an evaluation's ROC, a list of `OperatingPoint` by rising thresholds, empty where none is known.
    """
    return html_page.filled(TEMPLATE, '<link rel="stylesheet" href="style.css">', '<script src="page.js"></script>',
                            {**_common(gallery, curve), 'served': True, 'queries': []})


def write_page(path, gallery, queries, photos, curve):
    """Write the page of what was found, whole or not at all.

    Args:
        path: of the file.
        gallery: `Gallery`.
        queries: list of (name, list of `Found`).
        photos: of each query, the paths of its photos.
        curve: as for `served`.
    """
    files = [path for paths in photos for path in paths]
    files += [gallery.path(each.row) for _, found in queries for each in found]
    addresses = iter([picture and _data_address(picture) for picture in thumbnails(files, WIDTH, HEIGHT)])
    pictures = [[next(addresses) for _ in paths] for paths in photos]
    content = [{
        'name': name, 'pictures': of_photos, 'doubts': [],
        'results': [{'rank': each.rank, 'row': each.row, 'fid': each.fid, 'distance': each.distance,
                     'picture': next(addresses)} for each in found],
    } for (name, found), of_photos in zip(queries, pictures)]
    html_page.write(path, TEMPLATE, {**_common(gallery, curve), 'served': False, 'queries': content})


def is_page(path):
    """Whether a file is a page of `write_page`."""
    return html_page.is_made_from(TEMPLATE, path)


def _common(gallery, curve):
    """What the script reads on either page."""
    name = pathlib.Path(gallery.name).name
    return {'about': f'{len(gallery)} images of {name} · {gallery.metric} distance', 'threshold': gallery.threshold,
            'curve': [{'threshold': point.threshold, 'tpr': point.tpr, 'fpr': point.fpr} for point in curve]}


def _data_address(picture):
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg(picture)).decode('ascii')

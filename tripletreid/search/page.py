"""The page of search.py: one file with all that was found, or what a server sends of which the rest is asked for."""
import base64
import json
import pathlib

from tripletreid.files import holds, written_whole
from tripletreid.visualization.report import style as style_of_report
from tripletreid.visualization.thumbnails import jpeg, thumbnails

HERE = pathlib.Path(__file__).parent
MARK = '<!-- The page of `search.py`'
WIDTH, HEIGHT = 208, 312  # Pixels that a picture is shrunk to fit into; it is shown at half of them.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def style():
    """The stylesheet of the page: that of the report, and what this page has beside it."""
    return style_of_report() + (HERE / 'page.css').read_text(encoding='utf-8')


def script():
    """The script of the page."""
    return (HERE / 'page.js').read_text(encoding='utf-8')


def served(gallery, curve):
    """The page that a server sends: stylesheet, script and pictures have addresses of their own.

    Args:
        gallery: `Gallery`.
        curve: points of an evaluation's ROC, a list of `OperatingPoint` by rising thresholds, empty where none is known.
    """
    return _page({**_common(gallery, curve), 'served': True, 'queries': []},
                 '<link rel="stylesheet" href="style.css">', '<script src="page.js"></script>')


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
    text = _page({**_common(gallery, curve), 'served': False, 'queries': content},
                 f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>\n{style()}</style>',
                 f'<script>\n{script()}</script>')
    with written_whole(path) as temporary:
        pathlib.Path(temporary).write_text(text, encoding='utf-8', errors='backslashreplace')


def is_page(path):
    """Whether a file is a page of `write_page`."""
    return holds(path, MARK.encode(), within=1000)


def _common(gallery, curve):
    """What the script reads on either page."""
    name = pathlib.Path(gallery.name).name
    return {'about': f'{len(gallery)} images of {name} · {gallery.metric} distance', 'threshold': gallery.threshold,
            'curve': [{'threshold': point.threshold, 'tpr': point.tpr, 'fpr': point.fpr} for point in curve]}


def _page(data, head, end):
    # Without a < in them, no name out of a file can end the element that holds the data.
    text = json.dumps(data, allow_nan=False, separators=(',', ':'), ensure_ascii=False).replace('<', '\\u003c')
    page = (HERE / 'page.html').read_text(encoding='utf-8')
    for place, content in (('HEAD_OF_PAGE', head), ('END_OF_PAGE', end), ('PAGE_DATA', text)):
        before, after = page.split(place, 1)
        page = before + content + after
    return page


def _data_address(picture):
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg(picture)).decode('ascii')

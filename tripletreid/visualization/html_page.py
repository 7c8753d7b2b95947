"""An HTML page: a template with its data, and with its stylesheet and script inside or linked."""
import json
import pathlib

from tripletreid.errors import InputError
from tripletreid.files import holds, written_whole

HERE = pathlib.Path(__file__).parent
NOTED_MEGABYTES, MOST_MEGABYTES = 20, 100  # Size of the pictures on a page, for a note and as the limit.


def check_megabytes(megabytes):
    """Say that a page will hold so many megabytes of pictures, or raise InputError where that is too much."""
    size = f'about {megabytes:.0f} MB of pictures'
    if megabytes > MOST_MEGABYTES:
        raise InputError(f'The page would hold {size}, more than a browser shows with ease: add --link_images to refer '
                         f'to the image files instead.')
    if megabytes > NOTED_MEGABYTES:
        print(f'The page will hold {size}; with --link_images it refers to the image files instead.', flush=True)


def style(path):
    """Return a page's stylesheet: the shared one, then its own at `path`."""
    return _read(HERE / 'ranked_page.css') + _read(path)


def script(path):
    """Return a page's script: the shared one, then its parts NAME_*.js, then the whole at `path`, NAME.js."""
    parts = sorted(path.parent.glob(f'{path.stem}_*.js'))
    return ''.join(map(_read, [HERE / 'ranked_page.js', *parts, path]))


def filled(template, head, end, data):
    """Return a page.

    Args:
        template: path of the HTML file with HEAD_OF_PAGE, PAGE_DATA and END_OF_PAGE in it.
        head, end: HTML in place of the first and the last.
        data: JSON-serialisable content in place of the second.
    """
    # Without a < in the data, no name out of a file can end the element that holds them.
    text = json.dumps(data, allow_nan=False, separators=(',', ':'), ensure_ascii=False).replace('<', '\\u003c')
    page = _read(template)
    for place, content in (('HEAD_OF_PAGE', head), ('END_OF_PAGE', end), ('PAGE_DATA', text)):
        before, after = page.split(place, 1)
        page = before + content + after
    return page


def served(template, data):
    """Return a page for a server, which sends stylesheet and script at addresses of their own; arguments as for `filled`."""
    return filled(template, '<link rel="stylesheet" href="style.css">', '<script src="page.js"></script>', data)


def write(path, template, data, image_sources='data:'):
    """Write a page that needs no server and no network, atomically.

    Args:
        path: of the file.
        template: path of the HTML file; its stylesheet and script have the same stem.
        data: as for `filled`.
        image_sources: sources of images that the page's policy allows.
    """
    policy = (f"default-src 'none'; img-src {image_sources}; style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    page = filled(template, f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
                            f'<style>\n{style(template.with_suffix(".css"))}</style>',
                  f'<script>\n{script(template.with_suffix(".js"))}</script>', data)
    with written_whole(path) as temporary:
        pathlib.Path(temporary).write_text(page, encoding='utf-8', errors='backslashreplace')


def is_made_from(template, path):
    """Check whether a file is a page made from a template: the template's second line names its command in backticks."""
    line = _read(template).splitlines()[1]
    mark = line[:line.rindex('`') + 1]
    return holds(path, mark.encode(), within=1000)


def _read(path):
    return path.read_text(encoding='utf-8')

"""Figures of matplotlib, made and saved without a display, and names written on them, which may be long or Chinese."""
import bisect
import contextlib
import functools
import logging
import os
import warnings

from tripletreid.errors import InputError
from tripletreid.files import check_output, holds, written_whole


def check_picture_name(filename, inputs):
    """Fail before the work, not after it, where the name's ending is none of a picture, or it is that of another file.

    Args:
        inputs: paths of the files that the picture is made from.
    """
    from matplotlib.backend_bases import FigureCanvasBase
    ending = os.path.splitext(filename)[1][1:].lower()
    if ending not in FigureCanvasBase.filetypes:
        raise InputError(f'{filename} does not end in the name of a picture format; use .png, .pdf or .svg.')
    # PNG, PDF, PostScript and SVG name the program that made them; of the others none is known to be replaceable.
    check_output(filename, '--filename', 'a picture that says of itself that matplotlib made it',
                 lambda path: holds(path, b'Matplotlib'), inputs)


def new_figure(width, height, layout='constrained'):
    """A figure of a size in inches. It is made without pyplot, which would look for a display."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams['text.parse_math'] = False  # A $ in a file name is a $.
    return Figure(figsize=(width, height), layout=layout)


def use_fonts_for(names):
    """Let figures be written with fonts that have the characters of some names, as far as such fonts are installed.

    Args:
        names: str, whatever comes out of files.

    Returns: those of the names, in order, that have characters for which no installed font has a glyph.
    """
    import matplotlib
    from matplotlib import font_manager
    # The caller tells what is missing, once; which weights a font has is nobody's concern.
    warnings.filterwarnings('ignore', 'Glyph .* missing from')
    logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)
    missing = {character for character in set().union(*names) if character.isprintable()}
    missing -= _characters_of(font_manager.findfont(font_manager.FontProperties(family=['sans-serif'])))
    families = ['sans-serif']
    while missing:
        found = {family: _characters_of(path) & missing for family, path in installed_families().items()}
        best = max(found, key=lambda family: len(found[family]))
        if not found[best]:
            break
        families.append(best)
        missing -= found[best]
    matplotlib.rcParams['font.family'] = families
    text_width.cache_clear()
    return [name for name in names if not missing.isdisjoint(name)]


@functools.cache
def installed_families():
    """{name of a font family: the file of its regular weight}."""
    from matplotlib import font_manager
    manager = font_manager.fontManager
    # matplotlib's list of fonts is as old as its cache.
    for path in set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}:
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            manager.addfont(path)
    heavy_first = sorted(manager.ttflist, key=lambda entry: (-abs(entry.weight - 400), entry.name))
    # The last resort of matplotlib has a box for every character.
    return {entry.name: entry.fname for entry in heavy_first if 'Last Resort' not in entry.name}


@functools.cache
def _characters_of(path):
    """The characters that a font has glyphs for; none where it cannot be read, as some of emoji."""
    from matplotlib import font_manager
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def shortened(name, size, width):
    """A name in one line, or its beginning and its end with an ellipsis between, at most `width` points wide.

    Args:
        size: of the letters, in points.
    """
    name = ' '.join(name.splitlines())
    if text_width(name, size) <= width:
        return name

    def ends(kept):
        return f'{name[:(kept + 1) // 2]}…{name[len(name) - kept // 2:]}'

    return ends(bisect.bisect(range(1, len(name)), width, key=lambda kept: text_width(ends(kept), size)))


@functools.lru_cache(maxsize=4096)
def text_width(text, size):
    """Width of a line of text in points."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    pixels_per_point = 10
    renderer = RendererAgg(1, 1, 72 * pixels_per_point)
    return renderer.get_text_width_height_descent(text, FontProperties(size=size), False)[0] / pixels_per_point


def save_picture(figure, filename):
    ending = os.path.splitext(filename)[1][1:].lower()
    most_pixels = 2 ** 16 - 1  # of matplotlib's renderer, a side
    with written_whole(filename) as temporary:
        figure.savefig(temporary, format=ending, dpi=min(150, most_pixels / max(figure.get_size_inches())))

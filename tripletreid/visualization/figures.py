"""Figures of matplotlib, made and saved without a display, with names that may be long or in any script."""
import bisect
import contextlib
import functools
import logging
import os
import warnings

from tripletreid.errors import InputError
from tripletreid.files import check_output, holds, written_whole


def check_picture_name(filename, inputs):
    """Raise InputError before the work if a name does not end as a picture's, or if another kind of file has it.

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
    """Return a figure of a size in inches. It is made without pyplot, which would look for a display."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams['text.parse_math'] = False  # A $ in a file name is a $.
    return Figure(figsize=(width, height), layout=layout)


def use_fonts_for(names):
    """Add installed font families to matplotlib's list of fallbacks until they cover the characters of some names.

    Args:
        names: strings, e.g. out of file names.

    Returns: the names, in order, with characters that no installed font covers.
    """
    import matplotlib
    from matplotlib import font_manager
    # The caller reports missing characters once.
    warnings.filterwarnings('ignore', 'Glyph .* missing from')
    logging.getLogger('matplotlib.font_manager').setLevel(logging.ERROR)
    families = ['sans-serif']
    missing = {character for character in set().union(*names) if character.isprintable()} - _characters_of('sans-serif')
    if missing:
        _list_new_fonts()
    while missing:
        best = max(sorted(font_manager.get_font_names()), key=lambda family: len(_characters_of(family) & missing))
        if missing.isdisjoint(_characters_of(best)):
            break
        families.append(best)
        missing -= _characters_of(best)
    matplotlib.rcParams['font.family'] = families
    text_width.cache_clear()
    return [name for name in names if not missing.isdisjoint(name)]


def _list_new_fonts():
    """Add the fonts that were installed after matplotlib wrote its cached list."""
    from matplotlib import font_manager
    manager = font_manager.fontManager
    for path in set(font_manager.findSystemFonts()) - {entry.fname for entry in manager.ttflist}:
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            manager.addfont(path)


@functools.cache
def _characters_of(family):
    """Return the characters of a font family as a frozenset, empty for a font that cannot be read, e.g. of emoji."""
    from matplotlib import font_manager
    if 'Last Resort' in family:  # This font of matplotlib draws a box for every character.
        return frozenset()
    try:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def shortened(name, size, width):
    """Return a name in one line, or its beginning and its end with an ellipsis between, at most `width` points wide.

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

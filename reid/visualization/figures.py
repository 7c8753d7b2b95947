"""Figures of matplotlib, made and saved without a display."""
import os

from reid.errors import InputError
from reid.files import written_whole


def check_picture_name(filename):
    """Fail before the work, not after it, where the name's ending is none of a picture."""
    from matplotlib.backend_bases import FigureCanvasBase
    ending = os.path.splitext(filename)[1][1:].lower()
    if ending not in FigureCanvasBase.filetypes:
        raise InputError(f'{filename} does not end in the name of a picture format; use .png, .pdf or .svg.')


def new_figure(width, height, layout='constrained'):
    """A figure of a size in inches. It is made without pyplot, which would look for a display."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams['text.parse_math'] = False  # A $ in a file name is a $.
    return Figure(figsize=(width, height), layout=layout)


def save_picture(figure, filename):
    ending = os.path.splitext(filename)[1][1:].lower()
    most_pixels = 2 ** 16 - 1  # of matplotlib's renderer, a side
    with written_whole(filename) as temporary:
        figure.savefig(temporary, format=ending, dpi=min(150, most_pixels / max(figure.get_size_inches())))

"""Ranked lists as a picture, a row for each query."""
import itertools
import typing

import numpy as np

from tripletreid.visualization.figures import new_figure, shortened

# Frame of an image of a ranked list: colour, line, and the mark before its rank.
FRAMES = {'query': ('#1c2127', '-', ''), 'match': ('#1a7f37', '-', '✓ '), 'no match': ('#c9252d', '--', '✗ '),
          'excluded': ('#8a929c', ':', '')}
WIDTH = 60  # Width of a cell's picture; all lengths here are in points.
GAP = 16  # Between pictures side by side.
TEXT_SIZE = 7.5


class Cell(typing.NamedTuple):
    """An image of the picture: where it stands, its file, its frame (of FRAMES), and the lines below it.

    path: None where the image is missing.
    """
    row: int
    column: int
    path: str | None
    fid: str
    frame: str
    caption: tuple


def picture_of_lists(evaluation, query, gallery, queries, lists):
    """Draw ranked lists, a row each.

    Args:
        evaluation, query, gallery: as `ranked_lists.open_evaluation` gives them.
        queries: rows of the query dataset, int64 [n].
        lists: n lists of `Ranked`.

    Returns: figure, `Missing`.
    """
    from tripletreid.visualization.thumbnails import Missing, thumbnails
    cells = cells_of_lists(evaluation, query, gallery, queries, lists)
    pictures = list(thumbnails([cell.path for cell in cells], 3 * WIDTH, 6 * WIDTH))
    # All cells have the shape of a usual image of the picture, since most datasets have but one.
    shapes = [picture.height / picture.width for picture in pictures if picture] or [2]
    height = WIDTH * np.clip(np.median(shapes), 0.5, 2)

    across, down = WIDTH + GAP, height + 40
    page_width, page_height = (1 + max(map(len, lists))) * across + 20, len(lists) * down
    figure = new_figure(page_width / 72, page_height / 72, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for cell, picture in zip(cells, pictures):
        draw_cell(axes, cell, picture, cell.column * across + (20 if cell.column else 8), cell.row * down + 8, height)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), aspect='auto')
    return figure, Missing([cell.fid for cell, picture in zip(cells, pictures) if picture is None], len(cells))


def cells_of_lists(evaluation, query, gallery, queries, lists):
    """Return the cells of a picture: per query its own cell, then its ranked list; arguments as `picture_of_lists`."""
    cells = []
    for row, (q, ranked) in enumerate(zip(queries, lists)):
        query_pid = query.dataset.pids[q]
        ap = 'no match' if np.isnan(evaluation.ap[q]) else f'AP {evaluation.ap[q]:.1%}'
        cells.append(Cell(row, 0, query.paths[q], query.dataset.fids[q], 'query', (query_pid, ap)))
        ranks = itertools.count(1)
        for column, entry in enumerate(ranked, 1):
            pid = gallery.dataset.pids[entry.row]
            frame = 'excluded' if entry.excluded else 'match' if pid == query_pid else 'no match'
            place = 'excluded' if entry.excluded else f'{FRAMES[frame][2]}{next(ranks)}'
            cells.append(Cell(row, column, gallery.paths[entry.row], gallery.dataset.fids[entry.row], frame,
                              (f'{place}   {entry.distance:.3f}', pid)))
    return cells


def draw_cell(axes, cell, picture, left, top, height):
    """Draw a cell with its picture, None where the image is missing, into a frame of WIDTH by `height`."""
    from matplotlib.patches import Rectangle
    color, line, _ = FRAMES[cell.frame]
    x, y = left + WIDTH / 2, top + height / 2
    axes.add_patch(Rectangle((left - 2, top - 2), WIDTH + 4, height + 4, fill=False, color=color, linestyle=line,
                             linewidth=2.5))
    caption = '\n'.join(shortened(text, TEXT_SIZE, WIDTH + GAP - 4) for text in cell.caption)
    axes.text(x, top + height + 6, caption, ha='center', va='top', size=TEXT_SIZE, color=color, linespacing=1.3)
    if picture is None:
        axes.text(x, y, 'no image', ha='center', va='center', size=TEXT_SIZE, color='gray')
        return
    scale = min(WIDTH / picture.width, height / picture.height) / 2
    dx, dy = scale * picture.width, scale * picture.height
    if cell.frame == 'excluded':
        picture = picture.convert('L').convert('RGB')
    axes.imshow(picture, extent=(x - dx, x + dx, y + dy, y - dy), alpha=0.4 if cell.frame == 'excluded' else 1)

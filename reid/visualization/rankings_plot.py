"""Ranked lists as a picture, a row for each query."""
import itertools

import numpy as np

from reid.visualization.figures import new_figure

# How an image of a ranked list is framed: colour, line, and the mark beside its rank.
FRAMES = {'query': ('#1c2127', '-', ''), 'match': ('#1a7f37', '-', '✓ '), 'no match': ('#c9252d', '--', '✗ '),
          'excluded': ('#8a929c', ':', '')}


def picture_of_lists(evaluation, query, gallery, queries, lists):
    """Draw ranked lists, a row each.

    Returns: figure, file ids of the images that are missing, the number of images in all.
    """
    from matplotlib.patches import Rectangle

    from reid.visualization.thumbnails import thumbnails
    cells = []  # row, column, path of the image, its file id, frame, caption
    for row, (q, ranked) in enumerate(zip(queries, lists)):
        query_pid = query.dataset.pids[q]
        ap = 'no match' if np.isnan(evaluation.ap[q]) else f'AP {evaluation.ap[q]:.1%}'
        cells.append((row, 0, query.paths[q], query.dataset.fids[q], 'query', f'{query_pid}\n{ap}'))
        ranks = itertools.count(1)
        for column, entry in enumerate(ranked, 1):
            pid = gallery.dataset.pids[entry.row]
            frame = 'excluded' if entry.excluded else 'match' if pid == query_pid else 'no match'
            place = 'excluded' if entry.excluded else f'{FRAMES[frame][2]}{next(ranks)}'
            cells.append((row, column, gallery.paths[entry.row], gallery.dataset.fids[entry.row], frame,
                          f'{place}   {entry.distance:.3f}\n{pid}'))

    # Sizes in points. All cells have the shape of a usual image of the picture, since most datasets have but one.
    width = 60
    pictures = list(thumbnails([path for _, _, path, *_ in cells], 3 * width, 6 * width))
    shapes = [picture.height / picture.width for picture in pictures if picture] or [2]
    height = width * np.clip(np.median(shapes), 0.5, 2)
    across, down = width + 16, height + 40
    page_width, page_height = (1 + max(map(len, lists))) * across + 20, len(lists) * down
    figure = new_figure(page_width / 72, page_height / 72, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    missing = []
    for (row, column, _, fid, frame, caption), picture in zip(cells, pictures):
        color, line, _ = FRAMES[frame]
        left, top = column * across + (20 if column else 8), row * down + 8
        x, y = left + width / 2, top + height / 2
        axes.add_patch(Rectangle((left - 2, top - 2), width + 4, height + 4, fill=False, color=color, linestyle=line,
                                 linewidth=2.5))
        axes.text(x, top + height + 6, caption, ha='center', va='top', size=7.5, color=color, linespacing=1.3)
        if picture is None:
            missing.append(fid)
            axes.text(x, y, 'no image', ha='center', va='center', size=7.5, color='gray')
            continue
        scale = min(width / picture.width, height / picture.height) / 2
        dx, dy = scale * picture.width, scale * picture.height
        if frame == 'excluded':
            picture = picture.convert('L').convert('RGB')
        axes.imshow(picture, extent=(x - dx, x + dx, y + dy, y - dy), alpha=0.4 if frame == 'excluded' else 1)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), aspect='auto')
    return figure, missing, len(cells)

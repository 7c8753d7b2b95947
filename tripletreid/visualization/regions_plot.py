"""Parts of images that make a query and its nearest images near, as a picture with a row per query."""
import numpy as np
from PIL import Image

from tripletreid.visualization.figures import new_figure
from tripletreid.visualization.rankings_plot import FRAMES, GAP, WIDTH, Cell, draw_cell

NEAR, FAR = (215, 25, 28), (44, 123, 182)  # Colours of places that make images near, and of the others.
OPACITY = 0.7  # Opacity of the place with the largest part.


def row_of_query(explainer, query, gallery, number, ranked):
    """Explain a ranked list; print the distance of each image and its summands.

    Args:
        explainer: `Explainer` of the evaluation.
        query, gallery: its `LocatedDataset`.
        number: row of the query.
        ranked: its nearest images, a list of `Ranked`.

    Returns: list of (`Cell`, uint8 [H, W, 3], parts [h, w] or None), as `picture_of_regions` draws them.

    Raises:
        InputError: an image that is missing or cannot be read.
    """
    fid, pid = query.dataset.fids[number], query.dataset.pids[number]
    pixels = shown(explainer.query(number).pixels)
    row = [(Cell(0, 0, None, fid, 'query', (pid,)), pixels, None)]
    for rank, entry in enumerate(ranked, 1):
        other_fid, other_pid = (names[entry.row] for names in (gallery.dataset.fids, gallery.dataset.pids))
        found = explainer.explain(number, entry.row, entry.distance)
        print(f'{fid} and {other_fid}: {in_words(found)}')
        frame = 'match' if other_pid == pid else 'no match'
        row.append((Cell(0, 0, None, fid, 'query', (f'query, {rank}',)), pixels, found.query))
        row.append((Cell(0, 0, None, other_fid, frame, (f'{FRAMES[frame][2]}{rank}   {found.distance:.3f}', other_pid)),
                    shown(explainer.neighbour(entry.row).pixels), found.neighbour))
    return row


def in_words(found):
    """Return the distance of `Regions` and its summands in words."""
    if found.similarity is None:
        return f'distance {found.distance:.4f}'
    places = ' x '.join(f'{parts.shape[0] * parts.shape[1]}' for parts in (found.query, found.neighbour))
    return (f'distance {found.distance:.4f}; squared {found.remainder - 2 * found.similarity:.4f} = {found.remainder:.4f} - '
            f'2 x {found.similarity:.4f}, the sum over {places} pairs of places')


def shown(image):
    """Return an image float32 [H, W, 3] as uint8."""
    return np.uint8(np.rint(image).clip(0, 255))


def picture_of_regions(rows):
    """Draw parts of images.

    Args:
        rows: per query a list, as `row_of_query` returns it.

    Returns: figure.
    """
    height = WIDTH * np.clip(rows[0][0][1].shape[0] / rows[0][0][1].shape[1], 0.5, 2)
    across, down = WIDTH + GAP, height + 40
    page_width, page_height = max(map(len, rows)) * across + 8, len(rows) * down
    figure = new_figure(page_width / 72, page_height / 72, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, row in enumerate(rows):
        for place, (cell, pixels, parts) in enumerate(row):
            picture = Image.fromarray(pixels if parts is None else coloured(pixels, parts))
            draw_cell(axes, cell, picture, place * across + 8, number * down + 8, height)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0), aspect='auto')
    return figure


def coloured(pixels, parts):
    """Colour a grey copy of an image, uint8 [H, W, 3], by the parts of its places [h, w]: uint8 [H, W, 3]."""
    scaled = (parts / max(np.abs(parts).max(), 1e-12)).astype(np.float32)
    grey = np.asarray(Image.fromarray(pixels).convert('L'))[..., None]
    strength = np.asarray(Image.fromarray(scaled).resize(pixels.shape[1::-1], Image.Resampling.BILINEAR))[..., None]
    opacity = OPACITY * np.abs(strength)
    return np.uint8(np.rint(grey * (1 - opacity) + np.where(strength > 0, NEAR, FAR) * opacity))

"""Draw some images as a net sees them while training."""
import argparse

import numpy as np
import tensorflow as tf

from tripletreid.experiment import train_flags
from tripletreid.input_pipeline import augmentation, images
from tripletreid.visualization.figures import new_figure, shortened

CELL = 1.1  # Width of an image in inches, as all lengths.


def flags_of(args):
    """Return the flags of augmentation of a run that are not at their defaults, one string."""
    parser, args = train_flags.make_parser(), argparse.Namespace(**vars(args))
    names = parser.names_in_group('augmentation')
    parser.check_needs(args, dict.fromkeys(names, 0), only_warn=True)  # Idle flags get their defaults.
    given = {name: getattr(args, name) for name in names if getattr(args, name) != parser.idle_value(args, name)}
    return ' '.join(f'--{name}' if value is True else f'--{name} {value}' for name, value in given.items())


def drawn_images(paths, args, variants, seed):
    """Load images without augmentation, and variants with the augmentation of a run.

    Args:
        paths: of n image files.
        args: of `train.py`.
        variants: how many are drawn of each.
        seed: int.

    Returns: uint8 [n, 1 + variants, H, W, 3], the unchanged ones first.

    Raises:
        InputError: an image that cannot be read.
    """
    sizes = augmentation.load_size(args), (args.net_input_height, args.net_input_width)
    augment = tf.function(lambda image, step, slot: augmentation.augment(image, seed, step, slot, args), autograph=False)
    rows = []
    for slot, path in enumerate(paths):
        try:
            pixels = images.decode(tf.io.read_file(path), args.jpeg)
        except tf.errors.OpError as error:
            raise images.broken_image([path], error) from error
        loaded, whole = (images.resize(pixels, size, args.resize) for size in sizes)
        rows.append([whole, *(augment(loaded, tf.constant(step), tf.constant(slot)) for step in range(variants))])
    return np.array(rows).round().clip(0, 255).astype(np.uint8)


def picture_of_augmentation(drawn, names, title):
    """Draw a row per image: the image, then its variants.

    Args:
        drawn: as of `drawn_images`.
        names: of the images.
        title: of the picture.

    Returns: figure.
    """
    count, columns, height, width = drawn.shape[:4]
    row_height = CELL * height / width + 0.2
    figure = new_figure(CELL * columns + 0.2, row_height * count + 0.8)
    panels = figure.subplots(count, columns, squeeze=False)
    for row, name, variants in zip(panels, names, drawn):
        for panel, pixels in zip(row, variants):
            panel.imshow(pixels)
            panel.set(xticks=[], yticks=[])
        row[0].set_title(shortened(name, 7, 72 * CELL), fontsize=7, loc='left')
    figure.suptitle(shortened(title, 9, 72 * CELL * columns), fontsize=9)
    return figure

"""Generated pictures of persons, seen by two cameras, in the layout of Market-1501."""
import pathlib

import numpy as np
from PIL import Image


def write_market1501(root, identities, images_per_camera, size=(64, 32), seed=0):
    """Write bounding_box_train/, query/ and bounding_box_test/ with jpg files.

    A person is the colours of hair, shirt and trousers; a camera has a background, a tint and a brightness; each
    picture has its own shift and noise. Half of the identities train, the others are queries and gallery.
    """
    root = pathlib.Path(root)
    random = np.random.default_rng(seed)
    cameras = [(random.uniform(0.2, 0.8, 3), random.uniform(0.7, 1.3, 3)) for _ in range(2)]
    for folder in ('bounding_box_train', 'query', 'bounding_box_test'):
        (root / folder).mkdir(parents=True)
    for pid in range(1, identities + 1):
        colours = random.uniform(0, 1, (3, 3))
        for camera, (background, tint) in enumerate(cameras, 1):
            for number in range(images_per_camera):
                pixels = draw_person(random, size, colours, background) * tint
                if pid <= identities // 2:
                    folder = 'bounding_box_train'
                else:
                    folder = 'query' if number == 0 else 'bounding_box_test'
                name = f'{pid:04}_c{camera}s1_{number:06}_00.jpg'
                image = Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
                image.save(root / folder / name, quality=95)


def draw_person(random, size, colours, background):
    """Pixels [H, W, 3] of a standing figure, in 0..1."""
    height, width = size
    pixels = np.tile(background, (height, width, 1))
    shift = random.integers(-width // 8, width // 8 + 1)
    left, right = width // 4 + shift, 3 * width // 4 + shift
    edges = [height // 16, height // 4, 5 * height // 8, 15 * height // 16]
    for colour, top, bottom in zip(colours, edges, edges[1:]):
        pixels[top:bottom, left:right] = colour
    return pixels + random.normal(0, 0.08, pixels.shape)

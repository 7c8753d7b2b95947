"""Check that an export embeds images as embed.py embeds their files, and measure its speed."""
import os
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from tripletreid.errors import InputError
from tripletreid.files import temporary_folder
from tripletreid.input_pipeline import images
from tripletreid.modeling import inference
from tripletreid.modeling.aggregators import AGGREGATORS

TOLERANCE = 1e-4
# Change of pixels that no picture shows, but that is far above float32's rounding of 0..255.
PIXEL_CHANGE = 1e-3
CHECKED_IMAGES = 16
# Mean and standard deviation by which callers scale pixels, as they write them: of RGB 0..1. They are written apart from
# PIXEL_STATISTICS, so that a check finds an error in these.
CALLERS = {'imagenet': ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 'half': (0.5, 0.5),
           'clip': ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])}


def generated_images(folder, size):
    """Write images of colours and noise, each of its own size from `size` to twice that; return their paths."""
    random = np.random.default_rng(0)
    paths = [os.path.join(folder, f'{number}.png') for number in range(CHECKED_IMAGES)]
    for path in paths:
        height, width = (int(random.integers(side, 2 * side)) for side in size)
        colours = Image.fromarray(random.integers(0, 256, (4, 3, 3), np.uint8)).resize((width, height))
        noise = random.integers(-20, 21, (height, width, 3))
        Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8)).save(path)
    return paths


def references(network, paths, view, interface, aggregator=None):
    """Load images as a caller of an export does, and embed their files as embed.py does.

    Args:
        network: as `inference.from_experiment` returns it.
        paths: of image files; an empty list for generated ones.
        view: `inference_flags.View`.
        interface: `export_module.Interface`.
        aggregator: of the variants of an image, as embed.py's flag.

    Returns: (batches, embs): arrays in the layout of the export, and float32 [N, D] for all their images in order.
    """
    with temporary_folder() as folder:
        paths = paths or generated_images(folder, view.load)
        if interface.dtype == 'uint8' and not interface.any_size:
            # An export gets 8 bits after the resizing, so embed.py gets files of that size.
            originals, paths = paths, [os.path.join(folder, f'resized_{number}.png') for number in range(len(paths))]
            for original, path in zip(originals, paths):
                Image.fromarray(np.uint8(np.rint(images.load(original, view.load, view.pixels)))).save(path)
        embs = list(inference.embed_files(network, paths, view))
        if interface.any_size:
            batches = [images.decode(tf.io.read_file(path), view.pixels.jpeg)[None].numpy() for path in paths]
        else:
            loaded = np.stack([images.load(path, view.load, view.pixels) for path in paths])
            batches = [loaded[:1], loaded[1:]]
    batches = [as_called(batch, interface) for batch in batches if len(batch)]
    return batches, AGGREGATORS[aggregator or 'mean'](np.concatenate(embs, axis=1))


def as_called(batch, interface):
    """Return RGB 0..255 [B, H, W, 3] as the caller of an export passes it."""
    if interface.pixels:
        mean, std = map(np.array, CALLERS[interface.pixels])
        batch = (batch / 255 - mean) / std
    batch = batch.transpose(0, 3, 1, 2) if interface.layout == 'nchw' else batch
    return np.ascontiguousarray(batch, interface.dtype)


def load_batches(paths, view, interface):
    """Load image files as the caller of an export does, in batches of one array; see `references`."""
    loaded = [images.load(path, view.load, view.pixels).numpy() for path in paths]
    return [as_called(np.stack(loaded), interface)] if loaded else []


def embeddings(export, batches):
    """Return the embeddings of batches of images by an `exports.Loaded`, [N, D]."""
    return np.concatenate([export.embed(batch) for batch in batches])


def sensitivity(network, paths, view):
    """Measure how far the embeddings of images move when each pixel changes by PIXEL_CHANGE.

    Kernels of other formats round in another order, and some nets magnify this: batch norm with moving variances near 0,
    as after a short training on few images.

    Args:
        network, paths, view: as for `references`.

    Returns: the largest change of a number, relative as TOLERANCE is.
    """
    with temporary_folder() as folder:
        paths = paths or generated_images(folder, view.load)
        loaded = np.stack([images.load(path, view.net, view.pixels) for path in paths])
    changed = loaded + np.random.default_rng(0).choice([-PIXEL_CHANGE, PIXEL_CHANGE], loaded.shape)
    before, after = (network(tf.constant(pixels, tf.float32), training=False)['emb'].numpy() for pixels in (loaded, changed))
    return abs(after - before).max() / max(1, abs(before).max())


def max_difference(export, batches, expected, compared_with, measure_sensitivity):
    """Return the largest difference of an export's embeddings from the expected ones.

    Args:
        export: `exports.Loaded`.
        batches, expected: as `references` returns them.
        compared_with: name of the reference, for the message.
        measure_sensitivity: function that returns `sensitivity`, which is measured only if TOLERANCE is exceeded.

    Raises:
        InputError: it is more than TOLERANCE, relative to the largest number in an embedding where that is above 1,
            because float32 has 24 bits, and more than the sensitivity.
    """
    difference = abs(embeddings(export, batches) - expected).max()
    unit = max(1, abs(expected).max())
    if not difference <= TOLERANCE * unit and not difference <= measure_sensitivity() * unit:
        raise InputError(f'The export differs from {compared_with} by up to {difference:.1e}, with embeddings up to '
                         f'{abs(expected).max():.3g}: more than rounding explains, so it is not kept. Try another format.')
    return difference


def seconds_per_batch(export, batch_size, size, runs):
    """Return the median duration of embedding a batch of random images, after a first batch that does not count.

    Args:
        export: `exports.Loaded`.
        size: (height, width) of the images, if the export takes any.
    """
    channels_first = export.input_shape[1] == 3
    taken = export.input_shape[2:] if channels_first else export.input_shape[1:3]
    size = tuple(fixed or ours for fixed, ours in zip(taken, size))
    shape = (batch_size, 3, *size) if channels_first else (batch_size, *size, 3)
    batch = np.random.default_rng(0).integers(0, 256, shape).astype(export.input_dtype)
    durations = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        export.embed(batch)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations[1:]))

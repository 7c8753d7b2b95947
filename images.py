"""From a file to pixels, with the numerics of TensorFlow 1; and the variants of an image at test time."""
import os
import re

import tensorflow as tf

from errors import InputError


def paths(dataset, image_root):
    """Paths of all images of a dataset, list of str [N]."""
    return [os.path.join(image_root, fid) for fid in dataset.fids]


def load(path, size):
    """Read, decode and resize one image file, inside or outside of tf.data.

    Args:
        path: scalar string.
        size: (height, width).

    Returns: [height, width, 3] float32, RGB in 0..255.
    """
    return resize(decode(tf.io.read_file(path)), size)


def decode(content):
    """Decode an image file's bytes to uint8 [H, W, 3]. `decode_jpeg` looks at the bytes and reads PNG as well."""
    return tf.io.decode_jpeg(content, channels=3)


def resize(image, size):
    """Bilinear resize as TensorFlow 1 sampled: without half-pixel centres, which `tf.image.resize` now has.

    Args:
        image: [H, W, 3] uint8.
        size: (height, width).

    Returns: [height, width, 3] float32 in 0..255.
    """
    resized = tf.raw_ops.ResizeBilinear(images=image[None], size=size, align_corners=False, half_pixel_centers=False)[0]
    return tf.ensure_shape(resized, [*size, 3])


FIVE_CROPS = ('center', 'top_left', 'top_right', 'bottom_left', 'bottom_right')


def variant_names(flip, crop):
    """Names of an image's variants at test time: the flip is the outer loop, the crop the inner one.

    Args:
        flip: bool.
        crop: 'center', 'avgpool', 'five' or None (the image is resized to the net's input).
    """
    flips = ('original', 'original_flip') if flip else ('original',)
    crops = FIVE_CROPS if crop == 'five' else (crop or 'resize',)
    return [f'{flipped}_{cropped}' for flipped in flips for cropped in crops]


def variants(image, flip, crop, net_size):
    """The variants of an image at test time, in the order of `variant_names`.

    Args:
        image: [H, W, 3].
        flip: bool.
        crop: 'center', 'avgpool', 'five' or None.
        net_size: (height, width) of the crops, at most (H, W).

    Returns: [A, H', W', 3].
    """
    flipped = [image, tf.reverse(image, [1])] if flip else [image]
    if crop in ('center', 'five'):
        names = FIVE_CROPS if crop == 'five' else ('center',)
        return tf.stack([_crop(mirror, net_size, name) for mirror in flipped for name in names])
    return tf.stack(flipped)


def _crop(image, size, name):
    """One of FIVE_CROPS. An odd margin is split with the smaller half above and to the left of the centre."""
    margins = [full - cropped for full, cropped in zip(image.shape[:2], size)]
    if name == 'center':
        top, left = (margin // 2 for margin in margins)
    else:
        top = margins[0] if 'bottom' in name else 0
        left = margins[1] if 'right' in name else 0
    return image[top:top + size[0], left:left + size[1]]


def broken_image(image_paths, error):
    """The error to raise when the pipeline failed on a batch: it names the image that cannot be read or decoded.

    Args:
        image_paths: the files of the batch.
        error: what the pipeline raised, for the case that all of them read well now.
    """
    for path in image_paths:
        try:
            decode(tf.io.read_file(path))
        except tf.errors.OpError as reason:
            return InputError(f'The image {path} cannot be read: {_first_line(reason)}')
    return InputError(f'Images could not be loaded: {_first_line(error)}')


def _first_line(error):
    # TensorFlow puts names of its graph's nodes before the reason, in double braces.
    return re.sub(r'\{\{.*?\}\}', '', error.message.splitlines()[0]).strip()

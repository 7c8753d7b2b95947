"""Apply AutoAugment (Cubuk et al., CVPR 2019): two operations per image, by the policy for ImageNet.

The operations give the numbers of Pillow on images of 8 bits, whole numbers 0..255. Their magnitudes are 0 to 10.
"""
import math

import tensorflow as tf

LUMA = (19595, 38470, 7471)  # Weights of R, G and B, in units of 1/65536.
TOP_LEFT = (-0.5, -0.5)  # The corner of the image in columns and rows, which count centres of pixels.
GREY = 128.0  # The colour outside of a rotated or sheared image.

# Each sub-policy is two of (operation, its probability, its magnitude from 0 to 10): paper, table 9.
POLICY = (
    (('posterize', 0.4, 8), ('rotate', 0.6, 9)),
    (('solarize', 0.6, 5), ('auto_contrast', 0.6, 5)),
    (('equalize', 0.8, 8), ('equalize', 0.6, 3)),
    (('posterize', 0.6, 7), ('posterize', 0.6, 6)),
    (('equalize', 0.4, 7), ('solarize', 0.2, 4)),
    (('equalize', 0.4, 4), ('rotate', 0.8, 8)),
    (('solarize', 0.6, 3), ('equalize', 0.6, 7)),
    (('posterize', 0.8, 5), ('equalize', 1.0, 2)),
    (('rotate', 0.2, 3), ('solarize', 0.6, 8)),
    (('equalize', 0.6, 8), ('posterize', 0.4, 6)),
    (('rotate', 0.8, 8), ('color', 0.4, 0)),
    (('rotate', 0.4, 9), ('equalize', 0.6, 2)),
    (('equalize', 0.0, 7), ('equalize', 0.8, 8)),
    (('invert', 0.6, 4), ('equalize', 1.0, 8)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('rotate', 0.8, 8), ('color', 1.0, 2)),
    (('color', 0.8, 8), ('solarize', 0.8, 7)),
    (('sharpness', 0.4, 7), ('invert', 0.6, 8)),
    (('shear_x', 0.6, 5), ('equalize', 1.0, 9)),
    (('color', 0.4, 0), ('equalize', 0.6, 3)),
    (('equalize', 0.4, 7), ('solarize', 0.2, 4)),
    (('solarize', 0.6, 5), ('auto_contrast', 0.6, 5)),
    (('invert', 0.6, 4), ('equalize', 1.0, 8)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('equalize', 0.8, 8), ('equalize', 0.6, 3)),
)


def auto_augment(image, seed):
    """Round an image to whole numbers and change it by a sub-policy drawn at random.

    Args:
        image: [H, W, 3] float32, 0..255.
        seed: [2] int32.

    Returns: [H, W, 3] float32, whole numbers 0..255.
    """
    names = list(OPERATIONS)
    numbers = tf.constant([[names.index(name) + 1 for name, _, _ in pair] for pair in POLICY])
    probabilities = tf.constant([[probability for _, probability, _ in pair] for pair in POLICY])
    magnitudes = tf.constant([[float(magnitude) for _, _, magnitude in pair] for pair in POLICY])
    drawn = tf.random.stateless_uniform([5], seed)
    chosen = tf.cast(drawn[0] * len(POLICY), tf.int32)
    image = tf.round(image)
    for place in range(2):
        is_applied = drawn[1 + place] < probabilities[chosen, place]
        magnitude = magnitudes[chosen, place]
        sign = tf.where(drawn[3 + place] < 0.5, -1.0, 1.0)
        branches = [lambda image=image: image]
        branches += [lambda image=image, operation=operation, magnitude=magnitude, sign=sign:
                     operation(image, magnitude, sign) for operation in OPERATIONS.values()]
        image = tf.switch_case(tf.where(is_applied, numbers[chosen, place], 0), branches)
    return image


def affine(image, matrix, origin=None, **fill):
    """Return an image whose pixel at p is the input's pixel at `matrix` p, bilinearly resampled.

    Args:
        image: [H, W, 3] float32.
        matrix: two rows of two scalars, for x and y.
        origin: (x, y) from which p is measured, in columns and rows; None: the centre of the image.
        fill: the arguments of `tf.raw_ops.ImageProjectiveTransformV3` for the outside.
    """
    height, width = image.shape[:2]
    x, y = origin or ((width - 1) / 2, (height - 1) / 2)
    (xx, xy), (yx, yy) = matrix
    transform = tf.stack([xx, xy, x - xx * x - xy * y, yx, yy, y - yx * x - yy * y, 0.0, 0.0])
    return tf.ensure_shape(tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None], transforms=transform[None], output_shape=[height, width], interpolation='BILINEAR',
        **fill)[0], image.shape)


def _on_grey(image, matrix, origin=None):
    return tf.round(affine(image, matrix, origin, fill_mode='CONSTANT', fill_value=GREY))


def rotate(image, magnitude, sign):
    """Rotate by up to 30 degrees."""
    angle = sign * magnitude * math.radians(3)
    return _on_grey(image, ((tf.cos(angle), -tf.sin(angle)), (tf.sin(angle), tf.cos(angle))))


def shear_x(image, magnitude, sign):
    """Shift rows by up to 0.3 of their distance from the top edge, as the authors' code, timm and torchvision do."""
    return _on_grey(image, ((1.0, sign * magnitude * 0.03), (0.0, 1.0)), TOP_LEFT)


def posterize(image, magnitude, sign):
    """Keep the upper 4 to 8 bits of each number."""
    step = tf.pow(2.0, 4 - tf.floor(magnitude * 4 / 10))
    return tf.floor(image / step) * step


def solarize(image, magnitude, sign):
    """Invert the numbers from a threshold on, which is 0 to 256."""
    return tf.where(image < tf.floor(magnitude * 256 / 10), image, 255 - image)


def invert(image, magnitude, sign):
    """Invert all numbers."""
    return 255 - image


def equalize(image, magnitude, sign):
    """Equalise the histogram of each channel."""
    def equalize_channel(channel):
        counts = tf.math.bincount(tf.cast(tf.reshape(channel, [-1]), tf.int32), minlength=256, maxlength=256)
        last = tf.cast(tf.reduce_max(channel), tf.int32)
        step = (tf.reduce_sum(counts) - counts[last]) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        table = tf.cast(tf.minimum(table, 255), tf.float32)
        return tf.where(step > 0, tf.gather(table, tf.cast(channel, tf.int32)), channel)

    return tf.stack([equalize_channel(channel) for channel in tf.unstack(image, axis=2)], axis=2)


def auto_contrast(image, magnitude, sign):
    """Stretch the numbers of each channel to 0..255."""
    exact = tf.cast(image, tf.float64)
    low, high = tf.reduce_min(exact, axis=(0, 1)), tf.reduce_max(exact, axis=(0, 1))
    scale = 255 / tf.maximum(high - low, 1)
    stretched = tf.clip_by_value(tf.floor(exact * scale + (-low * scale)), 0, 255)
    return tf.where(high > low, tf.cast(stretched, tf.float32), image)


def color(image, magnitude, sign):
    """Blend with grey, or away from it."""
    return _blend(luma(image), image, magnitude)


def contrast(image, magnitude, sign):
    """Blend with the mean grey, or away from it."""
    return _blend(tf.floor(tf.reduce_mean(luma(image)) + 0.5), image, magnitude)


def sharpness(image, magnitude, sign):
    """Blend with weighted means over 3×3 pixels, or away from them; the border stays."""
    kernel = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    means = tf.nn.depthwise_conv2d(image[None], tf.tile(kernel[:, :, None, None], [1, 1, 3, 1]), [1] * 4, 'VALID')[0]
    height, width = image.shape[:2]
    inner = tf.pad(tf.ones([height - 2, width - 2, 1], tf.bool), [[1, 1], [1, 1], [0, 0]])
    smooth = tf.where(inner, tf.pad(tf.floor(means + 0.5), [[1, 1], [1, 1], [0, 0]]), image)
    return _blend(smooth, image, magnitude)


def luma(image):
    """Return the grey values of whole numbers: [H, W, 3] -> [H, W, 1], float32."""
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * LUMA, axis=2, keepdims=True)
    return tf.cast((weighted + 0x8000) // 0x10000, tf.float32)


def _blend(other, image, magnitude):
    """Blend an image with another one; its weight is from 0.1 to 1.9, and 1 minus that is the weight of the other."""
    weight = tf.cast((10 + 18 * tf.cast(magnitude, tf.float64)) / 100, tf.float32)
    return tf.floor(tf.clip_by_value(other + weight * (image - other), 0.0, 255.0))


OPERATIONS = {function.__name__: function for function in (
    rotate, shear_x, posterize, solarize, invert, equalize, auto_contrast, color, contrast, sharpness)}

"""Change images at random while training, and in all the same ways at test time.

An augmentation is one function (image, draws, args) -> image in AUGMENTATIONS, which returns the image unchanged if its flag
is off. A new one is a function, its place in that list, and its flag in the group `augmentation` of `train_flags`.
"""
import math

import tensorflow as tf

from tripletreid.input_pipeline import auto_augment
from tripletreid.input_pipeline.sampling import AUGMENTATION, stream_seed

ERASING_TRIES = 100
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
MEAN_COLOUR = (123.68, 116.78, 103.94)  # RGB mean of ImageNet.


def load_size(args):
    """Return (height, width) at which images are loaded for training, before they are augmented."""
    if args.crop_augment:
        return args.pre_crop_height, args.pre_crop_width
    return args.net_input_height, args.net_input_width


def augment(image, seed, step, slot, args):
    """Change an image at random.

    Args:
        image: [H, W, 3] float32 in 0..255, of `load_size`.
        seed, step: ints.
        slot: the image's place in the batch.
        args: arguments of `train.py`.

    Returns: [net_input_height, net_input_width, 3] float32.
    """
    draws = Draws(tf.random.fold_in(stream_seed(seed, AUGMENTATION, step), tf.cast(slot, tf.int32)))
    for change in AUGMENTATIONS:
        image = change(image, draws, args)
    return image


class Draws:
    """The random numbers of one image. Each use has a stream number of its own, so no flag changes the draws of another."""

    def __init__(self, seed):
        """
        Args:
            seed: [2] int32, of the image.
        """
        self._seed = seed
        self.flip, self.top, self.left = tf.unstack(tf.random.stateless_uniform([3], seed))

    def seed(self, stream):
        """Return the seed [2] of a stream, for the stateless functions of TensorFlow."""
        return tf.random.fold_in(self._seed, stream)

    def sometimes(self, stream, probability, change, image):
        """Return change(image) with a probability, else the image."""
        is_drawn = tf.random.stateless_uniform([], self.seed(stream)) < probability
        return tf.cond(is_drawn, lambda: change(image), lambda: image)


def apply_policy(image, draws, args):
    """Change an image by AutoAugment's policy."""
    if not args.auto_augment:
        return image
    return draws.sometimes(4, args.auto_augment, lambda image: auto_augment.auto_augment(image, draws.seed(5)), image)


def transform(image, draws, args):
    """Rotate, shear along the rows and scale an image about its centre, with one resampling and repeated borders."""
    if not (args.rotate or args.shear or args.scale):
        return image
    rotated, sheared, scaled = tf.unstack(tf.random.stateless_uniform([3], draws.seed(6), -1.0))
    angle, slope = rotated * math.radians(args.rotate), tf.tan(sheared * math.radians(args.shear))
    cosine, sine = tf.cos(angle) / (1 + scaled * args.scale), tf.sin(angle) / (1 + scaled * args.scale)
    matrix = (cosine + slope * sine, slope * cosine - sine), (sine, cosine)
    return auto_augment.affine(image, matrix, fill_mode='NEAREST', fill_value=0.0)


def pad(image, draws, args):
    """Pad an image with black rows and columns."""
    return tf.pad(image, [[args.pad_crop] * 2, [args.pad_crop] * 2, [0, 0]]) if args.pad_crop else image


def crop(image, draws, args):
    """Crop an image to the net input at random."""
    if not (args.crop_augment or args.pad_crop):
        return image
    height, width = args.net_input_height, args.net_input_width
    top = tf.cast(draws.top * (image.shape[0] - height + 1), tf.int32)
    left = tf.cast(draws.left * (image.shape[1] - width + 1), tf.int32)
    return tf.ensure_shape(image[top:top + height, left:left + width], [height, width, 3])


def flip(image, draws, args):
    """Mirror every second image on average."""
    return tf.cond(draws.flip < 0.5, lambda: tf.reverse(image, [1]), lambda: image) if args.flip_augment else image


def jitter(image, draws, args):
    """Change brightness, contrast, saturation and hue at random, in this order, each within 0..255.

    The image is blended with black, with its mean grey, and with its own grey; its weight is drawn from 1 - strength (at
    least 0) to 1 + strength. The hue is turned by up to its strength of the colour circle, in either direction.
    """
    if not args.color_jitter:
        return image
    *strengths, hue = map(float, args.color_jitter.split(','))
    drawn = tf.unstack(tf.random.stateless_uniform([4], draws.seed(7), -1.0))
    references = (tf.zeros_like, lambda image: tf.reduce_mean(gray(image)), gray)
    for reference_of, strength, number in zip(references, strengths, drawn):
        if strength:
            low, high = max(0.0, 1 - strength), 1 + strength
            reference = reference_of(image)
            weight = low + (high - low) * (number + 1) / 2
            image = tf.clip_by_value(reference + weight * (image - reference), 0.0, 255.0)
    return 255 * tf.image.adjust_hue(image / 255, hue * drawn[3]) if hue else image


def gray(image):
    """Return the grey of each pixel: [H, W, 3] -> [H, W, 1]."""
    return tf.reduce_sum(image * LUMA, axis=2, keepdims=True)


def make_gray(image, draws, args):
    """Make some images grey."""
    if not args.random_gray:
        return image
    return draws.sometimes(8, args.random_gray, lambda image: tf.tile(gray(image), [1, 1, 3]), image)


def blur(image, draws, args):
    """Blur an image by a Gaussian of a random standard deviation up to args.blur pixels, with repeated borders."""
    if not args.blur:
        return image
    deviation = tf.maximum(tf.random.stateless_uniform([], draws.seed(9), 0.0, args.blur), 1e-3)
    radius = math.ceil(3 * args.blur)
    weights = tf.exp(-tf.square(tf.range(-radius, radius + 1, dtype=tf.float32) / deviation) / 2)
    weights = tf.tile((weights / tf.reduce_sum(weights))[:, None, None, None], [1, 1, 3, 1])
    for axis in (0, 1):
        places = tf.clip_by_value(tf.range(-radius, image.shape[axis] + radius), 0, image.shape[axis] - 1)
        kernel = weights if axis == 0 else tf.transpose(weights, [1, 0, 2, 3])
        image = tf.nn.depthwise_conv2d(tf.gather(image, places, axis=axis)[None], kernel, [1] * 4, 'VALID')[0]
    return image


def erase(image, draws, args):
    """Erase a random rectangle of some images (Zhong et al., AAAI 2020)."""
    if not args.random_erasing:
        return image
    return draws.sometimes(2, args.random_erasing, lambda image: _erased(image, draws.seed(3)), image)


def _erased(image, seed):
    """Return an image with a random rectangle in the mean colour.

    The rectangle has 2 to 40 % of the image's area and 0.3 to 3.33 times its width as height, both drawn uniformly. One
    that is not smaller than the image in both directions is drawn again.
    """
    height, width = image.shape[:2]
    areas, aspects, tops, lefts = tf.unstack(tf.random.stateless_uniform([4, ERASING_TRIES], seed))
    areas = height * width * (0.02 + 0.38 * areas)
    aspects = 0.3 + (1 / 0.3 - 0.3) * aspects
    heights = tf.cast(tf.round(tf.sqrt(areas * aspects)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(areas / aspects)), tf.int32)
    fits = (heights < height) & (widths < width)
    first = tf.argmax(tf.cast(fits, tf.int32))
    rows = tf.range(height) - tf.cast(tops[first] * tf.cast(height - heights[first] + 1, tf.float32), tf.int32)
    columns = tf.range(width) - tf.cast(lefts[first] * tf.cast(width - widths[first] + 1, tf.float32), tf.int32)
    inside = ((0 <= rows) & (rows < heights[first]))[:, None] & ((0 <= columns) & (columns < widths[first]))
    return tf.where((inside & fits[first])[:, :, None], MEAN_COLOUR, image)


# All augmentations, in the order in which they are applied.
AUGMENTATIONS = (apply_policy, transform, pad, crop, flip, jitter, make_gray, blur, erase)

FIVE_CROPS = ('center', 'top_left', 'top_right', 'bottom_left', 'bottom_right')


def variant_names(flip, crop):
    """Return the names of an image's variants at test time: the flip is the outer loop, the crop the inner one.

    Args:
        flip: bool.
        crop: 'center', 'avgpool', 'five' or None (the image is resized to the net's input).
    """
    flips = ('original', 'original_flip') if flip else ('original',)
    crops = FIVE_CROPS if crop == 'five' else (crop or 'resize',)
    return [f'{flipped}_{cropped}' for flipped in flips for cropped in crops]


def variants(image, flip, crop, net_size):
    """Return the variants of an image at test time, in the order of `variant_names`.

    Args:
        image: [..., H, W, 3], one or a batch.
        flip: bool.
        crop: 'center', 'avgpool', 'five' or None.
        net_size: (height, width) of the crops, at most (H, W).

    Returns: [A, ..., H', W', 3].
    """
    flipped = [image, tf.reverse(image, [-2])] if flip else [image]
    if crop in ('center', 'five'):
        names = FIVE_CROPS if crop == 'five' else ('center',)
        return tf.stack([_crop(mirror, net_size, name) for mirror in flipped for name in names])
    return tf.stack(flipped)


def _crop(image, size, name):
    """Return one of FIVE_CROPS. The smaller half of an odd margin is above and to the left of the centre."""
    margins = [full - cropped for full, cropped in zip(image.shape[-3:-1], size)]
    if name == 'center':
        top, left = (margin // 2 for margin in margins)
    else:
        top = margins[0] if 'bottom' in name else 0
        left = margins[1] if 'right' in name else 0
    return image[..., top:top + size[0], left:left + size[1], :]

"""How images are changed: at random while training, and in all the same ways at test time."""
import math

import tensorflow as tf

from tripletreid.input_pipeline.auto_augment import affine, auto_augment
from tripletreid.input_pipeline.sampling import AUGMENTATION, stream_seed

ERASING_TRIES = 100
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
MEAN_COLOUR = (123.68, 116.78, 103.94)  # RGB, of ImageNet.


def erase(image, seed):
    """Random erasing (Zhong et al., AAAI 2020): a random rectangle takes on the mean colour.

    Its area is 2 to 40 % of the image's, its height over its width 0.3 to 3.33, both uniformly. One that is not
    smaller than the image in both directions is drawn again.

    Args:
        image: [H, W, 3] float32.
        seed: [2] int32.
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


def transform(image, seed, rotate, shear, scale):
    """Rotate, shear along the rows and scale an image about its centre, with one resampling; the border goes on outside.

    Args:
        image: [H, W, 3] float32.
        seed: [2] int32.
        rotate, shear: by up to as many degrees either way.
        scale: by a factor from 1 - scale to 1 + scale.
    """
    rotated, sheared, scaled = tf.unstack(tf.random.stateless_uniform([3], seed, -1.0))
    angle, slope = rotated * math.radians(rotate), tf.tan(sheared * math.radians(shear))
    cosine, sine = tf.cos(angle) / (1 + scaled * scale), tf.sin(angle) / (1 + scaled * scale)
    matrix = (cosine + slope * sine, slope * cosine - sine), (sine, cosine)
    return affine(image, matrix, fill_mode='NEAREST', fill_value=0.0)


def gray(image):
    """The grey of each pixel: [H, W, 3] -> [H, W, 1]."""
    return tf.reduce_sum(image * LUMA, axis=2, keepdims=True)


def jitter(image, seed, brightness, contrast, saturation, hue):
    """Change colours at random, in this order, each within 0..255.

    Args:
        image: [H, W, 3] float32, 0..255.
        seed: [2] int32.
        brightness, contrast, saturation: the image is blended with black, with its mean grey, with its own grey; its
            share is drawn from 1 - that (at least 0) to 1 + that.
        hue: it is turned by up to this share of the colour circle, either way.
    """
    drawn = tf.unstack(tf.random.stateless_uniform([4], seed, -1.0))
    references = (tf.zeros_like, lambda image: tf.reduce_mean(gray(image)), gray)
    for reference_of, strength, at in zip(references, (brightness, contrast, saturation), drawn):
        if strength:
            low, high = max(0.0, 1 - strength), 1 + strength
            reference = reference_of(image)
            share = low + (high - low) * (at + 1) / 2
            image = tf.clip_by_value(reference + share * (image - reference), 0.0, 255.0)
    return 255 * tf.image.adjust_hue(image / 255, hue * drawn[3]) if hue else image


def blur(image, seed, largest):
    """Blur an image by a Gaussian of a standard deviation of 0 to `largest` pixels; the border goes on outside.

    Args:
        image: [H, W, 3] float32.
        seed: [2] int32.
    """
    deviation = tf.maximum(tf.random.stateless_uniform([], seed, 0.0, largest), 1e-3)
    radius = math.ceil(3 * largest)
    weights = tf.exp(-tf.square(tf.range(-radius, radius + 1, dtype=tf.float32) / deviation) / 2)
    weights = tf.tile((weights / tf.reduce_sum(weights))[:, None, None, None], [1, 1, 3, 1])
    for axis in (0, 1):
        places = tf.clip_by_value(tf.range(-radius, image.shape[axis] + radius), 0, image.shape[axis] - 1)
        kernel = weights if axis == 0 else tf.transpose(weights, [1, 0, 2, 3])
        image = tf.nn.depthwise_conv2d(tf.gather(image, places, axis=axis)[None], kernel, [1] * 4, 'VALID')[0]
    return image


def load_size(args):
    """(height, width) at which images are loaded for training, before they are augmented."""
    if args.crop_augment:
        return args.pre_crop_height, args.pre_crop_width
    return args.net_input_height, args.net_input_width


def options(args):
    """What `augment` takes beside an image and its place, of the arguments of `train.py`, a dict."""
    net_size = (args.net_input_height, args.net_input_width)
    return {'flip': args.flip_augment, 'crop_size': net_size if args.crop_augment or args.pad_crop else None,
            'erasing': args.random_erasing, 'auto': args.auto_augment, 'rotate': args.rotate, 'shear': args.shear,
            'scale': args.scale, 'padding': args.pad_crop, 'grayness': args.random_gray, 'blurring': args.blur,
            'colors': tuple(map(float, args.color_jitter.split(','))) if args.color_jitter else None}


def augment(image, seed, step, slot, flip, crop_size, erasing=0.0, *, auto=0.0, rotate=0.0, shear=0.0, scale=0.0,
            padding=0, colors=None, grayness=0.0, blurring=0.0):
    """Change an image at random, in this order: AutoAugment, rotation, shear and scale, padding and crop, flip, colours,
    grey, blur, erasing.

    Args:
        image: [H, W, 3] float32.
        seed, step: ints.
        slot: the image's place in the batch.
        flip: bool, mirror every second image on average.
        crop_size: (height, width) of a random crop, or None.
        erasing: probability of random erasing.
        auto: probability of `auto_augment`.
        rotate, shear, scale: as of `transform`.
        padding: how many rows and columns of zeros are put round the image, before the crop.
        colors: the strengths of `jitter`, or None.
        grayness: probability of a grey image.
        blurring: the largest standard deviation of `blur`.
    """
    image_seed = tf.random.fold_in(stream_seed(seed, AUGMENTATION, step), tf.cast(slot, tf.int32))
    flip_at, top_at, left_at = tf.unstack(tf.random.stateless_uniform([3], image_seed))

    def at_times(number, probability, change, image):
        drawn = tf.random.stateless_uniform([], tf.random.fold_in(image_seed, number)) < probability
        return tf.cond(drawn, lambda: change(image), lambda: image)

    if auto:
        image = at_times(4, auto, lambda image: auto_augment(image, tf.random.fold_in(image_seed, 5)), image)
    if rotate or shear or scale:
        image = transform(image, tf.random.fold_in(image_seed, 6), rotate, shear, scale)
    if padding:
        image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
    if crop_size:
        height, width = crop_size
        top = tf.cast(top_at * (image.shape[0] - height + 1), tf.int32)
        left = tf.cast(left_at * (image.shape[1] - width + 1), tf.int32)
        image = tf.ensure_shape(image[top:top + height, left:left + width], [height, width, 3])
    if flip:
        image = tf.cond(flip_at < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
    if colors:
        image = jitter(image, tf.random.fold_in(image_seed, 7), *colors)
    if grayness:
        image = at_times(8, grayness, lambda image: tf.tile(gray(image), [1, 1, 3]), image)
    if blurring:
        image = blur(image, tf.random.fold_in(image_seed, 9), blurring)
    if erasing:
        image = at_times(2, erasing, lambda image: erase(image, tf.random.fold_in(image_seed, 3)), image)
    return image


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
    """One of FIVE_CROPS. An odd margin is split with the smaller half above and to the left of the centre."""
    margins = [full - cropped for full, cropped in zip(image.shape[-3:-1], size)]
    if name == 'center':
        top, left = (margin // 2 for margin in margins)
    else:
        top = margins[0] if 'bottom' in name else 0
        left = margins[1] if 'right' in name else 0
    return image[..., top:top + size[0], left:left + size[1], :]

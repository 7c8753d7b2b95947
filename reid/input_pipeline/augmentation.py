"""How images are changed: at random while training, and in all the same ways at test time."""
import tensorflow as tf

from reid.input_pipeline.sampling import AUGMENTATION, stream_seed

ERASING_TRIES = 100
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


def augment(image, seed, step, slot, flip, crop_size, erasing=0.0):
    """Flip, crop and partly erase an image at random.

    Args:
        image: [H, W, 3] float32.
        seed, step: ints.
        slot: the image's place in the batch.
        flip: bool, mirror every second image on average.
        crop_size: (height, width) of a random crop, or None.
        erasing: probability of random erasing.
    """
    image_seed = tf.random.fold_in(stream_seed(seed, AUGMENTATION, step), tf.cast(slot, tf.int32))
    flip_at, top_at, left_at = tf.unstack(tf.random.stateless_uniform([3], image_seed))
    if crop_size:
        height, width = crop_size
        top = tf.cast(top_at * (image.shape[0] - height + 1), tf.int32)
        left = tf.cast(left_at * (image.shape[1] - width + 1), tf.int32)
        image = tf.ensure_shape(image[top:top + height, left:left + width], [height, width, 3])
    if flip:
        image = tf.cond(flip_at < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
    if erasing:
        erased = tf.random.stateless_uniform([], tf.random.fold_in(image_seed, 2)) < erasing
        image = tf.cond(erased, lambda: erase(image, tf.random.fold_in(image_seed, 3)), lambda: image)
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

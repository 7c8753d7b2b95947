"""Which images the batch of step t holds, and how they are changed: pure functions of (seed, t).

So nothing of the input pipeline needs storing, and a resumed run sees exactly the batches that it would have seen.
Random numbers come from TensorFlow's stateless generators, whose seeds are derived from (seed, stream, t).

There is no Python here for AutoGraph to convert, which would take a second of each start.
"""
import numpy as np
import tensorflow as tf

import cache
import images
from errors import InputError

# One stream of random numbers for each thing that is drawn, so that no two of them are correlated.
IDENTITIES, IMAGES, AUGMENTATION, FRAMES, LOSS = range(5)

ERASING_TRIES = 100
MEAN_COLOUR = (123.68, 116.78, 103.94)  # RGB, of ImageNet.


class Identities:
    """The items of each identity, in arrays whose look-up costs the same for a thousand images as for ten million.

    An item is an image; or a tracklet with its frames, where the csv names tracklets.

    Attributes:
        names: the identities [I], sorted. Their place here is their number.
        pid_numbers: number of the identity of each row of the dataset, int32 [N].
        starts, counts: which items an identity has, int64 [I].
        rows: rows of the dataset, those of an item and the items of an identity adjoining, int64 [N].
        item_starts, item_counts: where the rows of an item lie in `rows`, int64 [M].
    """

    def __init__(self, dataset, batch_p):
        """Raises InputError when the dataset has fewer than P identities."""
        names, pid_numbers = np.unique(dataset.pids, return_inverse=True)
        if len(names) < batch_p:
            raise InputError(f'{dataset.path} has {len(names)} identities, fewer than the {batch_p} that a batch '
                             f'takes (--batch_p).')
        self.names = names
        self.pid_numbers = pid_numbers.astype(np.int32)
        items = np.arange(len(dataset)) if dataset.tracklets is None else dataset.tracklet_of_row()
        self.rows = np.lexsort([items, pid_numbers])
        self.item_starts = np.flatnonzero(np.diff(items[self.rows], prepend=-1))
        self.item_counts = np.diff(self.item_starts, append=len(dataset))
        self.counts = np.bincount(pid_numbers[self.rows[self.item_starts]])
        self.starts = np.cumsum(self.counts) - self.counts


def stream_seed(seed, stream, number):
    """Seed [2] int32 of a stateless generator for one thing drawn at one step (or epoch)."""
    return tf.random.fold_in(tf.stack([tf.cast(seed, tf.int32), stream]), tf.cast(number, tf.int32))


def epoch_identities(seed, epoch, num_identities, batch_p):
    """The identities of all the batches of an epoch: a fresh permutation, cut to a multiple of P.

    Returns: int64 [steps, P].
    """
    keys = tf.random.stateless_uniform([num_identities], stream_seed(seed, IDENTITIES, epoch), None, None, tf.int64)
    permutation = tf.argsort(keys, stable=True)
    steps = num_identities // batch_p
    return tf.reshape(tf.cast(permutation[:steps * batch_p], tf.int64), [steps, batch_p])


def draw_of_each(seed, stream, step, counts, k):
    """K images of each identity (or items of each of any groups), without replacement where it has that many.

    An identity with fewer has its images repeated as evenly as possible, then K of these are drawn. The draw is Robert
    Floyd's (Bentley and Floyd, CACM 1987): every subset equally likely, at a cost that does not depend on `counts`.

    Args:
        seed, stream, step: ints.
        counts: how many images each identity has, int64 [P].
        k: K.

    Returns: int64 [P, K], positions among the identity's images.
    """
    repeated_counts = counts * (-(-k // counts))
    randoms = tf.random.stateless_uniform([k, tf.size(counts)], stream_seed(seed, stream, step), None, None, tf.int32)
    randoms = tf.cast(tf.bitcast(randoms, tf.uint32), tf.int64)
    drawn = []
    for i in range(k):
        last = repeated_counts - k + i
        candidate = randoms[i] % (last + 1)
        taken = tf.reduce_any([candidate == other for other in drawn], axis=0) if drawn else False
        drawn.append(tf.where(taken, last, candidate))
    return tf.stack(drawn, axis=1) % counts[:, None]


@tf.autograph.experimental.do_not_convert
def batch_rows(identities, seed, first_step, last_step, batch_p, batch_k, frames=1):
    """A `tf.data.Dataset` of (step, rows [P·K·S]) for the steps [first_step, last_step); images of an identity adjoin.

    S is the number of frames of a tracklet; with images it is 1.
    """
    num_identities = len(identities.counts)
    steps_per_epoch = num_identities // batch_p
    rows, starts, counts = (tf.constant(array) for array in (identities.rows, identities.starts, identities.counts))
    item_starts, item_counts = tf.constant(identities.item_starts), tf.constant(identities.item_counts)
    first_step, last_step = tf.constant(first_step, tf.int64), tf.constant(last_step, tf.int64)

    def steps_of_epoch(epoch):
        first = epoch * steps_per_epoch
        skipped = tf.maximum(first_step - first, 0)
        chosen = epoch_identities(seed, epoch, num_identities, batch_p)[skipped:last_step - first]
        steps = first + skipped + tf.range(tf.shape(chosen, tf.int64)[0])
        return tf.data.Dataset.from_tensor_slices((steps, chosen))

    def draw(step, chosen):
        positions = draw_of_each(seed, IMAGES, step, tf.gather(counts, chosen), batch_k)
        items = tf.reshape(tf.gather(starts, chosen)[:, None] + positions, [-1])
        positions = draw_of_each(seed, FRAMES, step, tf.gather(item_counts, items), frames)
        return step, tf.reshape(tf.gather(rows, tf.gather(item_starts, items)[:, None] + positions), [-1])

    epochs = tf.data.Dataset.range(first_step // steps_per_epoch, -(-last_step // steps_per_epoch))
    return epochs.flat_map(steps_of_epoch).map(draw)


def rows_at(identities, args, step):
    """The rows of the dataset that the batch of one step holds, int64 [B]."""
    one_step = batch_rows(identities, args.seed, step, step + 1, args.batch_p, args.batch_k,
                          args.frames_per_tracklet)
    return next(iter(one_step))[1].numpy()


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


@tf.autograph.experimental.do_not_convert
def batches(dataset, identities, args, first_step, last_step, slots=None, part_size=None):
    """The batches of the steps [first_step, last_step), whole or in parts.

    Args:
        dataset: the training `Dataset`.
        identities: its `Identities`.
        args: of `train.py`.
        slots: the range of places in the batch whose images are loaded; None: all of them.
        part_size: into how many images each the slots are divided; None: all of them are one part.

    Returns: a `tf.data.Dataset` with one dict for each part of each step: `rows` int64 [B] and `pids` int32 [B] (numbers
        of identities) of the whole batch, `images` float32 [part_size, H, W, 3] of the part.
    """
    batch_size = args.batch_p * args.batch_k * args.frames_per_tracklet
    slots = slots or range(batch_size)
    part_size = part_size or len(slots)
    net_size = (args.net_input_height, args.net_input_width)
    crop_size = net_size if args.crop_augment else None
    load_size = (args.pre_crop_height, args.pre_crop_width) if args.crop_augment else net_size
    read = cache.reader(images.paths(dataset, args.image_root), args.cache, args.loading_threads)
    pid_numbers = tf.constant(identities.pid_numbers)

    def split(step, rows):
        of_slots = tf.range(slots.start, slots.stop)
        return tf.data.Dataset.from_tensor_slices((tf.repeat(step, len(slots)), of_slots, tf.gather(rows, of_slots)))

    def load(step, slot, row):
        image = images.resize(read(row), load_size)
        return augment(image, args.seed, step, slot, args.flip_augment, crop_size, args.random_erasing)

    def whole(step, rows):
        batch = {'rows': tf.ensure_shape(rows, [batch_size]), 'pids': tf.gather(pid_numbers, rows)}
        return tf.data.Dataset.from_tensors(batch).repeat(len(slots) // part_size)

    steps = batch_rows(identities, args.seed, first_step, last_step, args.batch_p, args.batch_k,
                       args.frames_per_tracklet)
    loaded = steps.flat_map(split).map(load, num_parallel_calls=args.loading_threads, deterministic=True)
    parts = tf.data.Dataset.zip(steps.flat_map(whole), loaded.batch(part_size, drop_remainder=True))
    return parts.map(lambda batch, part: {**batch, 'images': part}).prefetch(2)

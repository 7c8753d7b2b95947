"""Make the batches of a training run: draw rows, load and augment images."""
import numpy as np
import tensorflow as tf

from tripletreid import plugins
from tripletreid.input_pipeline import augmentation, cache, images
from tripletreid.input_pipeline.sampling import batch_rows
from tripletreid.pictures import Pixels


def batches_of_steps(dataset, identities, args, first_step, last_step, *part):
    """Return the `batches` of the steps [first_step, last_step), for a sampler that needs no training state."""
    sampler = plugins.load('samplers', args.sampler).Sampler(args, identities)
    return batches(dataset, identities, args, sampler.steps(first_step, last_step), *part)


@tf.autograph.experimental.do_not_convert
def batches(dataset, identities, args, steps, slots=None, part_size=None):
    """Return the batches of some steps, complete or in parts.

    Args:
        dataset: the training `Dataset`.
        identities: its `Identities`.
        args: arguments of `train.py`.
        steps: a `tf.data.Dataset` of (step, numbers of identities [P]), as a sampler's `steps` returns it.
        slots: places in the batch whose images are loaded, in this order, int64 [n]; None: all of them.
        part_size: into how many images each the slots are divided; None: all of them are one part.

    Returns: a `tf.data.Dataset` with one dict for each part of each step: `rows` int64 [B] and `pids` int32 [B] (numbers
        of identities) of the whole batch, `images` float32 [part_size, H, W, 3] of the part.
    """
    batch_size = args.batch_p * args.batch_k * args.frames_per_tracklet
    slots = np.arange(batch_size) if slots is None else slots
    part_size = part_size or len(slots)
    read = cache.reader(images.paths(dataset, args.image_root), args.cache, args.loading_threads,
                        augmentation.load_size(args), Pixels.from_args(args))
    pid_numbers = tf.constant(identities.pid_numbers)

    def split(step, rows):
        return tf.data.Dataset.from_tensor_slices((tf.repeat(step, len(slots)), slots, tf.gather(rows, slots)))

    def load(step, slot, row):
        return augmentation.augment(read(row), args.seed, step, slot, args)

    def whole(step, rows):
        batch = {'rows': tf.ensure_shape(rows, [batch_size]), 'pids': tf.gather(pid_numbers, rows)}
        return tf.data.Dataset.from_tensors(batch).repeat(len(slots) // part_size)

    steps = batch_rows(identities, args.seed, steps, args.batch_k, args.frames_per_tracklet)
    loaded = steps.flat_map(split).map(load, num_parallel_calls=args.loading_threads, deterministic=True)
    parts = tf.data.Dataset.zip(steps.flat_map(whole), loaded.batch(part_size, drop_remainder=True))
    return parts.map(lambda batch, part: {**batch, 'images': part}).prefetch(2)

"""Bring the batches to the replicas: each replica gets its own part of the images, before it needs them."""
import numpy as np
import tensorflow as tf

from tripletreid import cluster


def data(strategy, args, batches):
    """Feed the batches of a training to the replicas.

    Args:
        strategy: a `tf.distribute.Strategy`.
        args: of `train.py`.
        batches: function (slots, part_size) -> `tf.data.Dataset` of this worker's images, see `batches.batches`.

    Returns: an iterable.
    """
    replicas, frames = strategy.num_replicas_in_sync, args.frames_per_tracklet
    slots = np.arange(args.batch_p * args.batch_k * frames)
    slots = slots.reshape(-1, replicas, frames).swapaxes(0, 1).ravel()  # The order of `collectives.dealt`.
    task = cluster.task(args.distribute)
    own_slots = np.split(slots, task.workers)[task.worker]
    return ahead(strategy, lambda: batches(own_slots, len(slots) // replicas))


def ahead(strategy, parts):
    """Return an iterable that copies the parts of a dataset to the replicas' devices before they are requested.

    Args:
        strategy: a `tf.distribute.Strategy`.
        parts: function -> `tf.data.Dataset` of this worker, whose elements go to its replicas in turn.
    """
    options = tf.data.Options()
    # TensorFlow's replacement for `batch` allocates a whole batch first, and waits for ever when that fails.
    options.experimental_optimization.map_and_batch_fusion = False
    options.experimental_optimization.parallel_batch = False
    if strategy.num_replicas_in_sync > 1:
        return strategy.distribute_datasets_from_function(lambda _: parts().with_options(options))
    if tf.config.list_logical_devices('GPU'):
        return parts().with_options(options).apply(tf.data.experimental.prefetch_to_device('/GPU:0'))
    return parts().with_options(options)

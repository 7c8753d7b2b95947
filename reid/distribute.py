"""One device, several of one host, or several hosts: replicas share a batch and see each other's embeddings.

Each replica has the same variables and works on its own part of the batch. What it computes for its part is gathered,
so that every anchor is compared with the whole batch; the gradients of all replicas are added up. So the numbers are
those of one device that works on the whole batch, however many replicas there are; only batch norm takes its
statistics from a replica's own part, and checkpoints hold their mean over the replicas.

`gather`, `total`, `mean`, `own_first` and `batch_order` belong inside of the function that `strategy.run` runs.
"""
import contextlib

import tensorflow as tf

from reid import cluster
from reid.errors import InputError


def strategy(kind, devices=None):
    """What computes: to be called before anything else of TensorFlow.

    Args:
        kind: 'none' (the one device that TensorFlow chooses), 'mirrored' (the GPUs of this host) or 'multi_worker' (all
            GPUs of all workers of TF_CONFIG; without any, their CPUs).
        devices: with 'mirrored', how many GPUs, or None for all of them. On a host without a GPU the CPU is divided
            into as many devices, which is of use for trying things out only.

    Returns: a `tf.distribute.Strategy`.

    Raises:
        InputError: more devices than there are, or no connection to the other workers.
    """
    if kind == 'none':
        return tf.distribute.get_strategy()
    if kind == 'multi_worker':
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise InputError(f'The workers of TF_CONFIG could not be joined: {error.message.splitlines()[0]}') from error
    gpus = tf.config.list_physical_devices('GPU')
    if gpus and (devices or 1) > len(gpus):
        raise InputError(f'--devices {devices} is more than the {len(gpus)} GPUs of this host.')
    if not gpus:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * (devices or 1))
    names = [device.name for device in tf.config.list_logical_devices('GPU' if gpus else 'CPU')]
    return tf.distribute.MirroredStrategy(names[:devices])


@contextlib.contextmanager
def losing_a_worker_is_an_error():
    """What TensorFlow raises inside of this block when another worker has gone becomes an InputError."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError) as error:
        raise InputError(f'Another worker has ended or cannot be reached ({error.message.splitlines()[0]}). The '
                         f'checkpoints so far are intact: start all workers again with --resume.') from error


def description(strategy):
    """The devices of all replicas, in words."""
    if strategy.num_replicas_in_sync == 1:
        devices = tf.config.list_physical_devices('GPU') or tf.config.list_physical_devices('CPU')
        return devices[0].name.removeprefix('/physical_device:')
    devices = ' and '.join(device.rpartition('device:')[2] for device in strategy.extended.worker_devices)
    return f'{strategy.num_replicas_in_sync} replicas, here {devices}'


def data(strategy, args, batches):
    """The batches as they come to the replicas, each of which has its own part of the images, ahead of its use.

    Args:
        strategy: a `tf.distribute.Strategy`.
        args: of `train.py`.
        batches: function (slots, part_size) -> `tf.data.Dataset` of this worker, see `batches.batches`.

    Returns: an iterator.
    """
    batch_size = args.batch_p * args.batch_k * args.frames_per_tracklet
    part_size = batch_size // strategy.num_replicas_in_sync
    task = cluster.task(args.distribute)
    slots_per_worker = batch_size // task.workers
    slots = range(task.worker * slots_per_worker, (task.worker + 1) * slots_per_worker)
    return ahead(strategy, lambda: batches(slots, part_size))


def ahead(strategy, parts):
    """An iterator that copies the parts of a dataset to the replicas' devices before they are asked for.

    Args:
        strategy: a `tf.distribute.Strategy`.
        parts: function -> `tf.data.Dataset` of this worker, whose elements go to its replicas in turn.
    """
    if strategy.num_replicas_in_sync > 1:
        return iter(strategy.distribute_datasets_from_function(lambda _: parts()))
    if tf.config.list_logical_devices('GPU'):
        return iter(parts().apply(tf.data.experimental.prefetch_to_device('/GPU:0')))
    return iter(parts())


def check_batch(strategy, batch_size):
    """Raises InputError when the replicas cannot have equal parts of a batch."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise InputError(f'A batch of {batch_size} images (--batch_p times --batch_k) cannot be divided among '
                         f'{replicas} replicas. Choose a multiple of {replicas}.')


def run(strategy, function, *arguments):
    """Run `function` on all replicas, inside of a `tf.function`.

    Returns: what the first replica of this worker returns; what was gathered is the same on all of them.
    """
    results = strategy.run(function, arguments)
    return tf.nest.map_structure(lambda result: strategy.experimental_local_results(result)[0], results)


def total(tensors):
    """The sum of a list of tensors over all replicas, a list; its gradient is exact."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def gather(part):
    """The rows of all replicas, those of the first one first: [B / replicas, …] -> [B, …], and its exact gradient.

    `all_gather` would say the same, but fails between workers without GPUs; a sum of rows padded with zeros does not.
    """
    context = tf.distribute.get_replica_context()
    replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
    if replicas == 1:
        return part
    rows = tf.shape(part)[0]
    padding = [[replica * rows, (replicas - 1 - replica) * rows]] + [[0, 0]] * (part.shape.rank - 1)
    return total([tf.pad(part, padding)])[0]


def own_part(batch):
    """The rows of a whole batch [B, …] that are this replica's: [B / replicas, …]."""
    context = tf.distribute.get_replica_context()
    rows = tf.shape(batch)[0] // context.num_replicas_in_sync
    return batch[context.replica_id_in_sync_group * rows:][:rows]


def own_first(batch):
    """A whole batch [B, …], turned so that this replica's rows come first: the columns that a loss expects."""
    return _turn(batch, -1, axis=0)


def batch_order(dists):
    """Distances [B / replicas, B] with columns as `own_first` turned them, back in the order of the batch."""
    return _turn(dists, 1, axis=1)


def _turn(tensor, direction, axis):
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensor
    rows = tf.shape(tensor)[axis] // context.num_replicas_in_sync
    return tf.roll(tensor, direction * context.replica_id_in_sync_group * rows, axis)


def share_of_mean(rows):
    """What this replica adds to the mean over the rows of the whole batch, given its own ones: [B / replicas] -> []."""
    return tf.reduce_mean(rows) / tf.distribute.get_replica_context().num_replicas_in_sync


def mean(rows):
    """The mean over the rows of the whole batch, given this replica's own ones, [B / replicas], or their mean -> []."""
    return total([share_of_mean(rows)])[0]


def any_worker(strategy, flag):
    """Whether `flag` holds on any worker: all of them have to ask, and they get the same answer."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return bool(flag)
    return bool(_sum_over_replicas(strategy, tf.constant(float(bool(flag)))) > 0)


@tf.function(autograph=False)
def _sum_over_replicas(strategy, number):
    # A copy on the replica's own device: what has no device cannot be summed between workers.
    return run(strategy, lambda: total([tf.identity(number)])[0])


def values(variables):
    """What a checkpoint holds of variables, a dict {name: tensor}: the mean of those that differ between replicas.

    All workers have to call this, in the same order, since the mean is taken over all of them.
    """
    return {name: tf.convert_to_tensor(variables[name]) for name in sorted(variables)}

"""One device, several of one host, or several hosts: replicas share a batch and see each other's embeddings.

Each replica has the same variables and works on its own part of the batch. What it computes for its part is gathered,
so that every anchor is compared with the whole batch; the gradients of all replicas are added up. So the numbers are
those of one device that works on the whole batch, however many replicas there are; only batch norm takes its
statistics from a replica's own part, and checkpoints hold their mean over the replicas. So that no replica sees but a
few identities, the images of each are dealt round the replicas like cards.

All from `total` to `mean` belongs inside of the function that `strategy.run` runs.
"""
import contextlib
import hashlib
import json
import os

import numpy as np
import tensorflow as tf

from tripletreid import cluster
from tripletreid.errors import InputError


def strategy(kind, devices=None):
    """What computes: to be called before anything else of TensorFlow.

    Args:
        kind: 'none' (the one device that TensorFlow chooses), 'mirrored' (the GPUs of this host) or 'multi_worker' (all
            GPUs of all workers of TF_CONFIG, or of a step of SLURM; without any, their CPUs).
        devices: with 'mirrored', how many GPUs, or None for all of them. On a host without a GPU the CPU is divided
            into as many devices, which is of use for trying things out only.

    Returns: a `tf.distribute.Strategy`.

    Raises:
        InputError: more devices than there are, or no connection to the other workers.
    """
    if kind == 'multi_worker':
        try:
            if cluster.is_of_slurm():
                os.environ['TF_CONFIG'] = _config_of_slurm()
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError, KeyError) as error:
            reason = str(getattr(error, 'message', error)).splitlines()[0]
            raise InputError(f'The workers of {os.environ.get("TF_CONFIG", "SLURM")} could not be joined: '
                             f'{reason}') from error
    gpus = tf.config.list_physical_devices('GPU')
    if gpus and (devices or 1) > len(gpus):
        raise InputError(f'--devices {devices} is more than the {len(gpus)} GPUs of this host.')
    # Of each GPU that it sees TensorFlow takes nearly all memory, used or not.
    tf.config.set_visible_devices(gpus[:1 if kind == 'none' else devices], 'GPU')
    if kind == 'none':
        return tf.distribute.get_strategy()
    if not gpus:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * (devices or 1))
    names = [device.name for device in tf.config.list_logical_devices('GPU' if gpus else 'CPU')]
    return tf.distribute.MirroredStrategy(names[:devices])


def _config_of_slurm():
    """TF_CONFIG for the tasks of this step of SLURM, which also says which GPUs are whose (srun --gpus-per-task).

    Each job has ports of its own, lest two of them meet on a host.
    """
    ports = 20000 + int(os.environ.get('SLURM_JOB_ID', 0)) % 20000
    # Of GPUs it is not to know: it would ask nvidia-smi for those of the whole host, and fail on one without.
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=ports, gpus_per_node=1 << 10, gpus_per_task=1, auto_set_gpu=False)
    workers = resolver.cluster_spec().as_dict()
    kind, index = resolver.get_task_info()
    return json.dumps({'cluster': workers, 'task': {'type': kind, 'index': index}})


@contextlib.contextmanager
def losing_a_worker_is_an_error(strategy):
    """What TensorFlow raises inside of this block when another worker has gone becomes an InputError."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
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
        batches: function (slots, part_size) -> `tf.data.Dataset` of this worker's images, see `batches.batches`.

    Returns: an iterable.
    """
    replicas, frames = strategy.num_replicas_in_sync, args.frames_per_tracklet
    slots = np.arange(args.batch_p * args.batch_k * frames)
    slots = slots.reshape(-1, replicas, frames).swapaxes(0, 1).ravel()  # As `dealt` has it.
    task = cluster.task(args.distribute)
    own_slots = np.split(slots, task.workers)[task.worker]
    return ahead(strategy, lambda: batches(own_slots, len(slots) // replicas))


def ahead(strategy, parts):
    """An iterable that copies the parts of a dataset to the replicas' devices before they are asked for.

    Args:
        strategy: a `tf.distribute.Strategy`.
        parts: function -> `tf.data.Dataset` of this worker, whose elements go to its replicas in turn.
    """
    options = tf.data.Options()
    # What TensorFlow puts in place of a batch takes the memory of a whole one first, and waits for ever if there is none.
    options.experimental_optimization.map_and_batch_fusion = False
    options.experimental_optimization.parallel_batch = False
    if strategy.num_replicas_in_sync > 1:
        return strategy.distribute_datasets_from_function(lambda _: parts().with_options(options))
    if tf.config.list_logical_devices('GPU'):
        return parts().with_options(options).apply(tf.data.experimental.prefetch_to_device('/GPU:0'))
    return parts().with_options(options)


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


def dealt(batch, frames=1):
    """Rows of a batch in its own order [B, …], in the order in which the replicas have them: one image to each in turn.

    With `frames` > 1 as many rows that adjoin are one, the frames of a tracklet.
    """
    return _with_groups_transposed(batch, [-1, _replicas(), frames])


def gathered(part, frames=1):
    """As `gather`, in the order of the batch: the opposite of `dealt`."""
    return _with_groups_transposed(gather(part), [_replicas(), -1, frames])


def columns_of_batch(dists):
    """Distances [B / replicas, B] with columns as `own_first` turned them, with columns in the order of the batch."""
    in_order = _with_groups_transposed(tf.transpose(_turn(dists, 1, axis=1)), [_replicas(), -1, 1])
    return tf.transpose(in_order)


def _replicas():
    return tf.distribute.get_replica_context().num_replicas_in_sync


def _with_groups_transposed(rows, groups):
    """Rows [B, …] that are seen as groups [a, b, frames, …] and put in the order [b, a, frames, …]."""
    if _replicas() == 1:
        return rows
    grouped = tf.reshape(rows, [*groups, *rows.shape[1:]])
    return tf.reshape(tf.transpose(grouped, [1, 0, *range(2, grouped.shape.rank)]), tf.shape(rows))


def own_part(batch):
    """The rows of a batch as `dealt` [B, …] that are this replica's: [B / replicas, …]."""
    context = tf.distribute.get_replica_context()
    rows = tf.shape(batch)[0] // context.num_replicas_in_sync
    return batch[context.replica_id_in_sync_group * rows:][:rows]


def own_first(batch):
    """A batch as `dealt` [B, …], turned so that this replica's rows come first: the columns that a loss expects."""
    return _turn(batch, -1, axis=0)


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


def of_first_worker(strategy, numbers):
    """An array of numbers below 2^24 as the first worker has it; all of them have to ask."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return numbers
    of_replicas = _gathered_from_workers(strategy, tf.constant(numbers[None], tf.float32))
    return of_replicas.numpy()[0].astype(numbers.dtype)


def check_same_on_all_workers(strategy, facts):
    """Compare what each of several workers was started with; all of them have to ask.

    Args:
        strategy: a `tf.distribute.MultiWorkerMirroredStrategy`.
        facts: {name: text}, with the same names on all workers.

    Raises:
        InputError: a fact that differs, by its name.
    """
    names = sorted(facts)
    # 24 bits of a hash are a float32.
    digests = [int(hashlib.sha256(facts[name].encode()).hexdigest()[:6], 16) for name in names]
    of_replicas = _gathered_from_workers(strategy, tf.constant([digests], tf.float32)).numpy()
    different = [name for name, column in zip(names, of_replicas.T) if len(set(column)) > 1]
    if different:
        raise InputError(f'The workers were not started alike: {" and ".join(different)} '
                         f'{"differs" if len(different) == 1 else "differ"} between them. Give all of them the same '
                         f'arguments and the same csv files.')


@tf.function(autograph=False)
def _gathered_from_workers(strategy, row):
    return run(strategy, lambda: gather(tf.identity(row)))


@tf.function(autograph=False)
def _sum_over_replicas(strategy, number):
    # A copy on the replica's own device: what has no device cannot be summed between workers.
    return run(strategy, lambda: total([tf.identity(number)])[0])


def values(variables):
    """What a checkpoint holds of variables, a dict {name: tensor}: the mean of those that differ between replicas.

    All workers have to call this, in the same order, since the mean is taken over all of them.
    """
    return {name: tf.convert_to_tensor(variables[name]) for name in sorted(variables)}

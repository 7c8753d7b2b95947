"""Choose the devices that compute: one device, all GPUs of a host, or several hosts."""
import contextlib
import json
import os

import tensorflow as tf

from tripletreid import cluster
from tripletreid.errors import InputError


def create(kind, devices=None):
    """Create the strategy of `--distribute`; to be called before TensorFlow computes anything.

    A GPU's memory is allocated as needed, so that several programs can share the GPU. TensorFlow's own default, nearly
    all memory at once, is back with TF_FORCE_GPU_ALLOW_GROWTH=false in the environment.

    Args:
        kind: 'none' (the one device that TensorFlow chooses), 'mirrored' (the GPUs of this host) or 'multi_worker' (all
            GPUs of all workers of TF_CONFIG or of a SLURM step; the CPUs of hosts without GPUs).
        devices: with 'mirrored', the number of GPUs, or None for all of them. On a host without a GPU the CPU is divided
            into as many logical devices, which is useful for tests only.

    Returns: a `tf.distribute.Strategy`.

    Raises:
        InputError: more devices than the host has, or no connection to the other workers.
    """
    gpus = tf.config.list_physical_devices('GPU')
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # This process has used the GPU before.
            tf.config.experimental.set_memory_growth(gpu, True)
    if kind == 'multi_worker':
        return _multi_worker()
    if gpus and (devices or 1) > len(gpus):
        raise InputError(f'--devices {devices} is more than the {len(gpus)} GPUs of this host.')
    # TensorFlow takes memory of every GPU that it sees, even of those that it does not use.
    tf.config.set_visible_devices(gpus[:1 if kind == 'none' else devices], 'GPU')
    if kind == 'none':
        return tf.distribute.get_strategy()
    if not gpus:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * (devices or 1))
    names = [device.name for device in tf.config.list_logical_devices('GPU' if gpus else 'CPU')]
    return tf.distribute.MirroredStrategy(names[:devices])


def _multi_worker():
    try:
        if cluster.is_slurm_task():
            os.environ['TF_CONFIG'] = _config_of_slurm()
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError, KeyError) as error:
        reason = str(getattr(error, 'message', error)).splitlines()[0]
        raise InputError(f'The workers of {os.environ.get("TF_CONFIG", "SLURM")} could not be joined: '
                         f'{reason}') from error


def _config_of_slurm():
    """Return TF_CONFIG for the tasks of this SLURM step; SLURM assigns the GPUs itself (srun --gpus-per-task).

    Each job has ports of its own, so that two jobs can share a host.
    """
    ports = 20000 + int(os.environ.get('SLURM_JOB_ID', 0)) % 20000
    # With these numbers the resolver does not call nvidia-smi, which would list the GPUs of the whole host and fails on
    # hosts without one.
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=ports, gpus_per_node=1 << 10, gpus_per_task=1, auto_set_gpu=False)
    workers = resolver.cluster_spec().as_dict()
    kind, index = resolver.get_task_info()
    return json.dumps({'cluster': workers, 'task': {'type': kind, 'index': index}})


@contextlib.contextmanager
def losing_a_worker_is_an_error(strategy):
    """Turn the errors that TensorFlow raises in this block after another worker has gone into an InputError."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise InputError(f'Another worker has ended or cannot be reached ({error.message.splitlines()[0]}). The '
                         f'checkpoints so far are intact: start all workers again with --resume.') from error


def description(strategy):
    """Return the devices of all replicas in words."""
    if strategy.num_replicas_in_sync == 1:
        devices = tf.config.list_physical_devices('GPU') or tf.config.list_physical_devices('CPU')
        return devices[0].name.removeprefix('/physical_device:')
    devices = ' and '.join(device.rpartition('device:')[2] for device in strategy.extended.worker_devices)
    return f'{strategy.num_replicas_in_sync} replicas, here {devices}'


def check_batch(strategy, batch_size):
    """Raise InputError when a batch cannot be divided into equal parts for the replicas."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise InputError(f'A batch of {batch_size} images (--batch_p times --batch_k) cannot be divided among '
                         f'{replicas} replicas. Choose a multiple of {replicas}.')

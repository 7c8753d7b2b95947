"""Let several workers decide the same, outside of the training step; all workers have to call these functions."""
import hashlib

import tensorflow as tf

from tripletreid.distribute import collectives
from tripletreid.errors import InputError


def any_worker(strategy, flag):
    """Return whether `flag` is true on any worker; all workers get the same answer."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return bool(flag)
    return bool(_sum_over_replicas(strategy, tf.constant(float(bool(flag)))) > 0)


def first_worker(strategy, numbers):
    """Return the first worker's array of numbers below 2^24."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return numbers
    rows = _gathered_from_workers(strategy, tf.constant(numbers[None], tf.float32))
    return rows.numpy()[0].astype(numbers.dtype)


def check_same_on_all_workers(strategy, facts):
    """Compare the arguments and files of all workers.

    Args:
        strategy: a `tf.distribute.MultiWorkerMirroredStrategy`.
        facts: {name: text}, with the same names on all workers.

    Raises:
        InputError: a fact that differs, by its name.
    """
    names = sorted(facts)
    # 24 bits of a hash fit into a float32.
    digests = [int(hashlib.sha256(facts[name].encode()).hexdigest()[:6], 16) for name in names]
    rows = _gathered_from_workers(strategy, tf.constant([digests], tf.float32)).numpy()
    different = [name for name, column in zip(names, rows.T) if len(set(column)) > 1]
    if different:
        raise InputError(f'The workers were started differently: {" and ".join(different)} '
                         f'{"differs" if len(different) == 1 else "differ"} between them. Give all of them the same '
                         f'arguments and the same csv files.')


@tf.function(autograph=False)
def _gathered_from_workers(strategy, row):
    return collectives.run(strategy, lambda: collectives.gather(tf.identity(row)))


@tf.function(autograph=False)
def _sum_over_replicas(strategy, number):
    # tf.identity places the number on the replica's own device: a number without a device cannot be summed.
    return collectives.run(strategy, lambda: collectives.total([tf.identity(number)])[0])

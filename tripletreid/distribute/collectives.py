"""Combine the results of the replicas, inside of the function that `strategy.run` runs.

Each replica has the same variables and works on its own part of the batch. The embeddings of all parts are gathered, so
that every anchor is compared with the whole batch, and the gradients of all replicas are summed. The numbers are therefore
the numbers of one device that works on the whole batch. The exception is batch norm, which normalises with the statistics
of a replica's own part; the moving statistics are averaged over the replicas after each step. The images of each identity
are dealt round the replicas like cards, so that each replica sees many identities.
"""
import tensorflow as tf


def run(strategy, function, *arguments):
    """Run `function` on all replicas, inside of a `tf.function`.

    Returns: the result of this worker's first replica; gathered tensors are equal on all replicas.
    """
    results = strategy.run(function, arguments)
    return tf.nest.map_structure(lambda result: strategy.experimental_local_results(result)[0], results)


def total(tensors):
    """Sum each tensor of a list over all replicas; the gradient is exact."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def gather(part):
    """Gather the rows of all replicas in the order of the replicas: [B / replicas, …] -> [B, …]; the gradient is exact.

    `all_gather` fails between workers without GPUs, while a sum of rows padded with zeros works.
    """
    context = tf.distribute.get_replica_context()
    replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
    if replicas == 1:
        return part
    rows = tf.shape(part)[0]
    padding = [[replica * rows, (replicas - 1 - replica) * rows]] + [[0, 0]] * (part.shape.rank - 1)
    return total([tf.pad(part, padding)])[0]


def dealt(batch, frames=1):
    """Reorder a batch [B, …] from its own order to the order of the replicas: one image to each replica in turn.

    With `frames` > 1, as many adjacent rows (the frames of a tracklet) stay together.
    """
    return _with_groups_transposed(batch, [-1, _replicas(), frames])


def gathered(part, frames=1):
    """Gather rows as `gather` does, in the order of the batch: the inverse of `dealt`."""
    return _with_groups_transposed(gather(part), [_replicas(), -1, frames])


def columns_of_batch(dists):
    """Reorder the columns of distances [B / replicas, B] from the order of `own_first` to the order of the batch."""
    in_order = _with_groups_transposed(tf.transpose(_turn(dists, 1, axis=1)), [_replicas(), -1, 1])
    return tf.transpose(in_order)


def _replicas():
    return tf.distribute.get_replica_context().num_replicas_in_sync


def _with_groups_transposed(rows, groups):
    """View rows [B, …] as groups [a, b, frames, …] and return them in the order [b, a, frames, …]."""
    if _replicas() == 1:
        return rows
    grouped = tf.reshape(rows, [*groups, *rows.shape[1:]])
    return tf.reshape(tf.transpose(grouped, [1, 0, *range(2, grouped.shape.rank)]), tf.shape(rows))


def own_part(batch):
    """Return this replica's rows of a batch that `dealt` has ordered: [B, …] -> [B / replicas, …]."""
    context = tf.distribute.get_replica_context()
    rows = tf.shape(batch)[0] // context.num_replicas_in_sync
    return batch[context.replica_id_in_sync_group * rows:][:rows]


def own_first(batch):
    """Rotate a batch that `dealt` has ordered so that this replica's rows come first: the columns a loss expects."""
    return _turn(batch, -1, axis=0)


def _turn(tensor, direction, axis):
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensor
    rows = tf.shape(tensor)[axis] // context.num_replicas_in_sync
    return tf.roll(tensor, direction * context.replica_id_in_sync_group * rows, axis)


def part_of_mean(rows):
    """Return this replica's summand of the mean over the rows of the whole batch: [B / replicas] -> []."""
    return tf.reduce_mean(rows) / tf.distribute.get_replica_context().num_replicas_in_sync


def agree(variables):
    """Set variables whose values differ between replicas to their mean over the replicas.

    A checkpoint stores one value. With it, a resumed run has the bits of the undisturbed one only if the replicas of the
    undisturbed run agree after every step.

    Args:
        variables: list of Keras variables, of batch norm statistics for example.
    """
    replicas = _replicas()
    if replicas > 1 and variables:
        for variable, value in zip(variables, total([tf.identity(variable.value) / replicas for variable in variables])):
            variable.assign(value)


def mean(rows):
    """Return the mean over the rows of the whole batch, from this replica's rows [B / replicas] or their mean: -> []."""
    return total([part_of_mean(rows)])[0]

"""Batches of identities that look alike to the net: those whose mean embeddings are near each other.

Triplets mined in a batch are only as hard as the identities in it are similar, and of many identities few that are drawn
at random are. A simple relative of the sampling of Sikdar and Chowdhury (2020).
"""
import numpy as np
import tensorflow as tf

from tripletreid.distribute import agreement
from tripletreid.input_pipeline.sampling import epoch_order

RATE = 0.5  # By which a mean moves towards the embeddings of a batch.
GROUP = 3  # Identities of a batch that look alike.
CANDIDATES = 4096  # Among as many the group of one is looked for, so that distances are linear in the identities.
FEWEST_STEPS = 100  # Between two draws, each of which waits for the step before and for the images of the next.


class HardIdentities:
    """Draws the identities of the batches of some steps ahead, by running means of the identities' embeddings.

    Of the steps behind a draw the images can be loaded ahead, and a run that is resumed within them finds what was drawn.

    Attributes:
        variables: dict {name: variable} of its state, for checkpoints: the means float32 [I, D], zeros of an identity
            that was in no batch yet, and the drawn identities int64 [steps, P].
    """

    def __init__(self, num_identities, args, strategy):
        """Takes the arguments of `train.py`, and the `tf.distribute.Strategy` that trains."""
        self._metric, self._seed = args.metric, args.seed
        steps_per_epoch = num_identities // args.batch_p
        self._period = steps_per_epoch * -(-FEWEST_STEPS // steps_per_epoch)
        with strategy.scope():
            self._means = tf.Variable(tf.zeros([num_identities, args.embedding_dim]), trainable=False)
        with tf.device('CPU:0'):  # Where batches are made.
            self._drawn = tf.Variable(tf.zeros([self._period, args.batch_p], tf.int64), trainable=False)
            self._step = tf.Variable(tf.zeros([], tf.int64), trainable=False)
        self.variables = {'identity_means': self._means, 'identities_drawn': self._drawn}

    def follow(self, embs, pids):
        """Move the means towards the embeddings of a whole batch, [B, D] and [B], inside of a `tf.function`."""
        means = tf.convert_to_tensor(self._means)
        count = tf.math.unsorted_segment_sum(tf.ones_like(pids, tf.float32), pids, means.shape[0])[:, None]
        of_batch = tf.math.unsorted_segment_sum(embs, pids, means.shape[0]) / tf.maximum(count, 1)
        is_new = tf.reduce_all(means == 0, axis=1, keepdims=True)
        moved = means + tf.where(is_new, 1.0, RATE) * (of_batch - means)
        self._means.assign(tf.where(count > 0, moved, means))

    def at(self, step):
        """The identities of the batch of a step behind the last draw, int64 [P]."""
        return self._drawn.numpy()[step % self._period]

    @tf.autograph.experimental.do_not_convert
    def steps(self, last_step):
        """A `tf.data.Dataset` of (step, numbers of identities [P]) up to the next draw, or to `last_step`, for `batches`.

        It is another one each time that it is iterated over.
        """
        def since_draw(_):
            place = self._step % self._period
            chosen = self._drawn[place:place + last_step - self._step]
            return tf.data.Dataset.from_tensor_slices((self._step + tf.range(tf.shape(chosen, tf.int64)[0]), chosen))

        return tf.data.Dataset.range(1).flat_map(since_draw)

    def batches(self, data, first_step, last_step, strategy, parts):
        """Iterate over the batches of the steps [first_step, last_step), and draw as the training goes on.

        Args:
            data: iterable over the batches of `steps(last_step)`.
            strategy: a `tf.distribute.Strategy`, each worker of which has to take these batches.
            parts: those of `sampling.Identities`.
        """
        period, step = self._period, first_step
        while step < last_step:
            if step % period == 0:
                means = tf.convert_to_tensor(self._means).numpy()
                drawn = draw(means, self._metric, parts, self._drawn.shape[1], self._seed, step, period)
                self._drawn.assign(agreement.first_worker(strategy, drawn))
            self._step.assign(step)
            yield from data
            step += period - step % period


def draw(means, metric, parts, batch_p, seed, step, steps):
    """The identities of the batches of some steps, int64 [steps, P].

    As with random batches an epoch has each identity once, but for a remainder; where a part's epoch goes on behind a
    draw, about so: the order in which groups begin stays, and who belongs to them moves with the means.

    Args:
        means: mean embeddings float32 [I, D], zeros where there is none.
        metric: one of `distances.METRICS`.
        parts: numbers of the identities that the equal parts of a batch are drawn from, list of int64 arrays.
        batch_p: P.
        seed, step, steps: ints, the first step and how many.
    """
    of_parts, size = [], batch_p // len(parts)
    for number, part in enumerate(parts):
        per_epoch, rows = len(part) // size, []
        while len(rows) < steps:
            order = epoch_order(seed, (step + len(rows)) // per_epoch, len(part), number if len(parts) > 1 else None)
            rows += in_groups(part[order.numpy()], means, metric, size)[(step + len(rows)) % per_epoch:]
        of_parts.append(rows[:steps])
    return np.concatenate(of_parts, axis=1)


def in_groups(order, means, metric, size):
    """All identities in batches of groups: one of them and those that look most like it, of those that are left.

    Args:
        order: numbers of the identities, int64 [n]; the first one that is left begins a group.
        means, metric: as of `draw`; one without a mean looks like nobody.
        size: of a batch.

    Returns: list of int64 arrays [size], without a remainder.
    """
    means = means[order]
    batches, known, left = [], means.any(axis=1), np.arange(len(order))
    if metric == 'cosine':
        means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    absolute = np.abs if metric == 'cityblock' else np.square
    while len(left) >= size:
        batch = []
        while len(batch) < size:
            among = left[:CANDIDATES]
            dists = absolute(means[among] - means[among[0]]).sum(axis=1)
            dists[~(known[among] & known[among[0]])] = np.inf
            dists[0] = -1
            chosen = np.argsort(dists, kind='stable')[:min(GROUP, size - len(batch))]
            batch += list(left[chosen])
            left = np.delete(left, chosen)
        batches.append(order[batch])
    return batches

"""Similar identities: groups of identities whose mean embeddings are near each other.

Triplets mined in a batch are only as hard as its identities are similar, and among many identities few random ones are
similar. This is a simple relative of the sampling of Sikdar and Chowdhury (2020).
"""
import numpy as np
import tensorflow as tf

from tripletreid import metrics
from tripletreid.distribute import agreement
from tripletreid.input_pipeline.sampling import epoch_order

RATE = 0.5  # Weight of a batch's embeddings in the running mean of their identity.
GROUP = 3  # Number of similar identities that enter a batch together.
CANDIDATES = 4096  # A group is searched for among as many identities, so that the cost is linear in their number.
FEWEST_STEPS = 100  # At least as many steps lie between two draws, because a draw waits for the step before it.


class Sampler:
    """Draws the identities of the batches of many steps ahead, by running means of the identities' embeddings.

    Images of drawn steps are loaded ahead, and a run that is resumed between two draws finds the drawn identities.

    Attributes:
        variables: the means float32 [I, D], zeros for an identity that was in no batch yet, and the drawn identities
            int64 [period, P].
    """
    identity_axes = {'identity_means': 0}

    def __init__(self, args, identities, strategy):
        self._metric, self._seed, self._batch_p = args.metric, args.seed, args.batch_p
        self._parts, self._strategy = identities.parts, strategy
        num_identities = len(identities.names)
        steps_per_epoch = num_identities // args.batch_p
        self._period = steps_per_epoch * -(-FEWEST_STEPS // steps_per_epoch)
        with strategy.scope():
            self._means = tf.Variable(tf.zeros([num_identities, args.embedding_dim]), trainable=False)
        with tf.device('CPU:0'):  # The input pipeline, which reads these, runs there.
            self._drawn = tf.Variable(tf.zeros([self._period, args.batch_p], tf.int64), trainable=False)
            self._step = tf.Variable(tf.zeros([], tf.int64), trainable=False)
        self.variables = {'identity_means': self._means, 'identities_drawn': self._drawn}
        self.notices = []
        if num_identities < 2 * args.batch_p:
            self.notices.append(f'--sampler hard_identity has little to choose from: each batch takes {args.batch_p} of '
                                f'{num_identities} identities.')

    def draw(self, step):
        """Draw the identities of a period's steps at its start; return the first step of the next period.

        A period is drawn again where nothing is drawn for it, because the identities have changed since.
        """
        start = step - step % self._period
        if step == start or not self._drawn[step - start].numpy().any():
            means = tf.convert_to_tensor(self._means).numpy()
            drawn = draw(means, self._metric, self._parts, self._batch_p, self._seed, start, self._period)
            self._drawn.assign(agreement.first_worker(self._strategy, drawn))
        self._step.assign(step)
        return start + self._period

    def update(self, embs, pids):
        """Move the means towards the embeddings of a whole batch."""
        means = tf.convert_to_tensor(self._means)
        count = tf.math.unsorted_segment_sum(tf.ones_like(pids, tf.float32), pids, means.shape[0])[:, None]
        batch_means = tf.math.unsorted_segment_sum(embs, pids, means.shape[0]) / tf.maximum(count, 1)
        is_new = tf.reduce_all(means == 0, axis=1, keepdims=True)
        moved = means + tf.where(is_new, 1.0, RATE) * (batch_means - means)
        self._means.assign(tf.where(count > 0, moved, means))

    @tf.autograph.experimental.do_not_convert
    def steps(self, first_step, last_step):
        """Return the batches from the last call of `draw` (not before `first_step`) to the next one or to `last_step`."""
        def since_draw(_):
            start = tf.maximum(tf.constant(first_step, tf.int64), self._step)
            place = start % self._period
            chosen = self._drawn[place:place + last_step - start]
            return tf.data.Dataset.from_tensor_slices((start + tf.range(tf.shape(chosen, tf.int64)[0]), chosen))

        return tf.data.Dataset.range(1).flat_map(since_draw)


def draw(means, metric, parts, batch_p, seed, step, steps):
    """Draw the identities of the batches of some steps, int64 [steps, P].

    As with random batches, an epoch has each identity once, except for a remainder. Where a draw falls into an epoch of a
    part, this holds only about: the order of the groups' first members stays, and the other members depend on the means.

    Args:
        means: mean embeddings float32 [I, D], zeros where there is none.
        metric: one of `metrics.METRICS`.
        parts: numbers of the identities that the equal parts of a batch are drawn from, list of int64 arrays.
        batch_p: P.
        seed, step, steps: ints, the first step and how many.
    """
    columns, size = [], batch_p // len(parts)
    for number, part in enumerate(parts):
        per_epoch, rows = len(part) // size, []
        while len(rows) < steps:
            order = epoch_order(seed, (step + len(rows)) // per_epoch, len(part), number if len(parts) > 1 else None)
            # The epoch's remainder is cut off first, at random: the remainder of the groups would be the same isolated
            # identities in each epoch.
            order = part[order.numpy()[:per_epoch * size]]
            rows += in_groups(order, means, metric, size)[(step + len(rows)) % per_epoch:]
        columns.append(rows[:steps])
    return np.concatenate(columns, axis=1)


def in_groups(order, means, metric, size):
    """Divide identities into batches of groups: the first remaining identity, and those that look most like it.

    Args:
        order: numbers of the identities, int64 [n], n being a multiple of the size.
        means, metric: see `draw`; an identity without a mean looks like no other.
        size: of a batch.

    Returns: list of int64 arrays [size].
    """
    means = means[order]
    batches, known, left = [], means.any(axis=1), np.arange(len(order))
    metric = metrics.load(metric)
    if metric.is_normalized:
        means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    while len(left) >= size:
        batch = []
        while len(batch) < size:
            among = left[:CANDIDATES]
            # The order of the sums equals the order of the distances.
            dists = metric.term(means[among] - means[among[0]], np).sum(axis=1)
            dists[~(known[among] & known[among[0]])] = np.inf
            dists[0] = -1
            chosen = np.argsort(dists, kind='stable')[:min(GROUP, size - len(batch))]
            batch += list(left[chosen])
            left = np.delete(left, chosen)
        batches.append(order[batch])
    return batches

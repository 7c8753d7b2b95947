"""Choose the images of the batch of step t: a pure function of (seed, t).

The input pipeline therefore has no state to store, and a resumed run sees the batches of an uninterrupted one.
Random numbers come from TensorFlow's stateless generators, whose seeds are derived from (seed, stream, t).

There is no Python here for AutoGraph to convert, which would take a second of each start.
"""
import numpy as np
import tensorflow as tf

from tripletreid.errors import InputError

# A stream of random numbers for each use, so that no two uses are correlated.
IDENTITIES, IMAGES, AUGMENTATION, FRAMES, LOSS, CENTERS, STOCHASTIC_DEPTH = range(7)


class Identities:
    """The items of each identity, in arrays whose look-up costs the same for a thousand images as for ten million.

    An item is an image; or a tracklet with its frames, where the csv names tracklets.

    Attributes:
        names: the identities [I], sorted. Their place here is their number.
        pid_numbers: number of the identity of each row of the dataset, int32 [N].
        starts, counts: which items an identity has, int64 [I].
        rows: rows of the dataset, int64 [N]; the rows of an item are adjacent, and so are the items of an identity.
        item_starts, item_counts: place of the rows of an item in `rows`, int64 [M].
        parts: numbers of the identities that the equal parts of a batch are drawn from, list of int64 arrays: one of
            all, or one of each of the sets.
    """

    def __init__(self, dataset, batch_p, batch_per_set=False):
        """
        Args:
            dataset: the training `Dataset`.
            batch_p: P.
            batch_per_set: each of the joined sets has an equal part of each batch.

        Raises:
            InputError: the dataset has fewer than P identities, or one of the sets fewer than its part of them.
        """
        names, pid_numbers = np.unique(dataset.pids, return_inverse=True)
        if len(names) < batch_p:
            raise InputError(f'{dataset.path} has {len(names)} identities, fewer than the {batch_p} that a batch '
                             f'takes (--batch_p).')
        self.names = names
        self.parts = [np.arange(len(names))]
        if batch_per_set:
            set_of_name = np.array([name.partition('/')[0] for name in names])
            self.parts = [np.flatnonzero(set_of_name == each) for each in dataset.sets]
            for name, part in zip(dataset.sets, self.parts):
                if len(part) < batch_p // len(self.parts):
                    raise InputError(f'The training set {name} has {len(part)} identities, fewer than its part of a '
                                     f'batch, {batch_p // len(self.parts)} of {batch_p}; lower --batch_p or leave '
                                     f'--batch_per_set out.')
        self.pid_numbers = pid_numbers.astype(np.int32)
        items = np.arange(len(dataset)) if dataset.tracklets is None else dataset.tracklet_of_row()
        self.rows = np.lexsort([items, pid_numbers])
        self.item_starts = np.flatnonzero(np.diff(items[self.rows], prepend=-1))
        self.item_counts = np.diff(self.item_starts, append=len(dataset))
        self.counts = np.bincount(pid_numbers[self.rows[self.item_starts]])
        self.starts = np.cumsum(self.counts) - self.counts

    def lone(self, frames=1):
        """Return the number of identities with a single item, which has no more than S frames.

        All K draws of such an identity are the same images, so its anchors have no positives but themselves.
        """
        return int(((self.counts == 1) & (self.item_counts[self.starts] <= frames)).sum())


def check_positives(identities, dataset, args):
    """Return a warning about identities whose anchors have no positives but themselves, a sentence, or None.

    Args:
        identities: of the training `Dataset`.
        dataset: the training `Dataset`.
        args: arguments of `train.py`.

    Raises:
        InputError: fewer than two identities of a new run have positives. With none, a triplet loss learns nothing; with
            one, it learns to distinguish two images instead of two identities.
    """
    lone, total = identities.lone(args.frames_per_tracklet), len(identities.names)
    if not lone or args.loss == 'none' or not args.metric_weight:
        return None
    item = 'image' if dataset.tracklets is None else 'tracklet'
    sentence = (f'{lone} of {total} identities of {dataset.path} have one {item} only. It is repeated, so that their '
                f'anchors have no positive but themselves')
    if total - lone < 2 and not args.resume:
        raise InputError(f'{sentence}: the loss would go to nothing, and nothing would be learned. Training needs two '
                         f'identities at least with two {item}s each, and should have many.')
    return f'{sentence}: they only serve as negatives.'


def shares_of_sets(identities, dataset, batch_p):
    """Yield a sentence per joined set: its images, its identities, and its fraction of a batch; none for a single set."""
    sets = np.array([fid.partition('/')[0] for fid in dataset.fids] if dataset.sets else [])
    names = np.array([name.partition('/')[0] for name in identities.names])
    for name in dataset.sets:
        in_set = int((names == name).sum())
        per_batch = batch_p / len(dataset.sets) if len(identities.parts) > 1 else batch_p * in_set / len(names)
        yield (f'{name}: {int((sets == name).sum())} images of {in_set} identities, {per_batch:.3g} of the {batch_p} '
               f'identities of a batch.')


def stream_seed(seed, stream, number):
    """Return the seed [2] int32 of a stateless generator for one use at one step (or epoch)."""
    return tf.random.fold_in(tf.stack([tf.cast(seed, tf.int32), stream]), tf.cast(number, tf.int32))


def epoch_order(seed, epoch, num_identities, part=None):
    """Return the order of the identities in an epoch: a permutation of its own, int64 [num_identities].

    Args:
        seed, epoch, num_identities: ints.
        part: number of the part of the batches, where they have several; each part has its own permutations.
    """
    epoch_seed = stream_seed(seed, IDENTITIES, epoch)
    epoch_seed = epoch_seed if part is None else tf.random.fold_in(epoch_seed, part)
    keys = tf.random.stateless_uniform([num_identities], epoch_seed, None, None, tf.int64)
    return tf.cast(tf.argsort(keys, stable=True), tf.int64)


def draw_of_each(seed, stream, step, counts, k):
    """Draw K images of each identity (or items of each group), without replacement where it has that many.

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
def batch_rows(identities, seed, steps, batch_k, frames=1):
    """Return the rows of each batch; the images of an identity are adjacent.

    Args:
        identities: the `Identities`.
        seed: int.
        steps: a `tf.data.Dataset` of (step, numbers of identities [P]), as a sampler's `steps` returns it.
        batch_k: K.
        frames: S, frames per tracklet; 1 for images.

    Returns: a `tf.data.Dataset` of (step, rows [P·K·S]).
    """
    rows, starts, counts = (tf.constant(array) for array in (identities.rows, identities.starts, identities.counts))
    item_starts, item_counts = tf.constant(identities.item_starts), tf.constant(identities.item_counts)

    def draw(step, chosen):
        positions = draw_of_each(seed, IMAGES, step, tf.gather(counts, chosen), batch_k)
        items = tf.reshape(tf.gather(starts, chosen)[:, None] + positions, [-1])
        positions = draw_of_each(seed, FRAMES, step, tf.gather(item_counts, items), frames)
        return step, tf.reshape(tf.gather(rows, tf.gather(item_starts, items)[:, None] + positions), [-1])

    return steps.map(draw)


def rows_at(identities, args, steps):
    """Return the rows of the dataset that the batch of one step holds, int64 [B].

    Args:
        identities: the `Identities`.
        args: of `train.py`.
        steps: a `tf.data.Dataset` whose first element is that step, as a sampler's `steps` returns it.
    """
    return next(iter(batch_rows(identities, args.seed, steps, args.batch_k, args.frames_per_tracklet)))[1].numpy()


def batches_as_drawn(sampler, data, first_step, last_step):
    """Iterate over the batches of the steps [first_step, last_step), and let the sampler draw when its draw runs out.

    Args:
        sampler: of samplers/.
        data: iterable over the batches of the sampler's `steps`; it is iterated over again after each draw.
        first_step, last_step: ints.
    """
    step = first_step
    while step < last_step:
        next_draw = sampler.draw(step)
        yield from data
        step = next_draw or last_step

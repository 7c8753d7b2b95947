"""Random identities, as in the paper: each epoch is a fresh permutation of all identities, cut into batches of P."""
import tensorflow as tf

from tripletreid.input_pipeline.sampling import epoch_order


class Sampler:
    """A pure function of the seed and the step: a checkpoint stores nothing of it."""

    def __init__(self, args, identities, strategy=None):
        self._seed, self._batch_p, self._parts = args.seed, args.batch_p, identities.parts
        self.variables, self.identity_axes, self.notices = {}, {}, []

    def draw(self, step):
        """Do nothing: all batches of the run are known from the start."""

    def update(self, embs, pids):
        """Do nothing: the batches do not depend on the training."""

    @tf.autograph.experimental.do_not_convert
    def steps(self, first_step, last_step):
        """Return the batches of the steps [first_step, last_step); an epoch has each identity once, except for a remainder.

        With several parts of a batch (`--batch_per_set`), each part has epochs of its own.
        """
        first_step, last_step = tf.constant(first_step, tf.int64), tf.constant(last_step, tf.int64)
        size = self._batch_p // len(self._parts)

        def steps_of_part(part, numbers):
            steps_per_epoch = len(numbers) // size

            def steps_of_epoch(epoch):
                first = epoch * steps_per_epoch
                skipped = tf.maximum(first_step - first, 0)
                order = epoch_order(self._seed, epoch, len(numbers), part if len(self._parts) > 1 else None)
                chosen = tf.reshape(order[:steps_per_epoch * size], [steps_per_epoch, size])
                chosen = tf.gather(numbers, chosen[skipped:last_step - first])
                steps = first + skipped + tf.range(tf.shape(chosen, tf.int64)[0])
                return tf.data.Dataset.from_tensor_slices((steps, chosen))

            epochs = tf.data.Dataset.range(first_step // steps_per_epoch, -(-last_step // steps_per_epoch))
            return epochs.flat_map(steps_of_epoch)

        def concatenated(*parts):
            steps, chosen = zip(*parts)
            return steps[0], tf.concat(chosen, axis=0)

        parts = [steps_of_part(*each) for each in enumerate(self._parts)]
        return parts[0] if len(self._parts) == 1 else tf.data.Dataset.zip(*parts).map(concatenated)

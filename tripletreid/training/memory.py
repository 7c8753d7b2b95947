"""A memory of the embeddings of earlier batches, with which anchors are compared, too (Wang et al., CVPR 2020, XBM)."""
import tensorflow as tf


class Memory:
    """The last N embeddings and their identities, the newest batch first. They have no gradient.

    A memory whose size is not a multiple of the batch keeps the first rows of its oldest batch. (Ring buffers keep the last
    rows; all rows of a batch are equally old.)

    Attributes:
        variables: dict {name: variable} of its state, for checkpoints.
    """

    def __init__(self, size, embedding_dim):
        self._embs = tf.Variable(tf.zeros([size, embedding_dim]), trainable=False)
        # A step that XLA compiled for a GPU cannot read int32 variables.
        self._pids = tf.Variable(tf.zeros([size], tf.int64), trainable=False)
        self.variables = {'memory_embs': self._embs, 'memory_pids': self._pids}

    def content(self):
        """Return embeddings [N, D] float32 and the numbers of their identities [N] int32."""
        return tf.convert_to_tensor(self._embs), tf.cast(self._pids, tf.int32)

    def remember(self, embs, pids):
        """Replace the oldest embeddings by a whole batch, [B, D] and [B], inside of a `tf.function`."""
        size = self._embs.shape[0]
        self._embs.assign(tf.concat([embs, self._embs], axis=0)[:size])
        self._pids.assign(tf.concat([tf.cast(pids, tf.int64), self._pids], axis=0)[:size])

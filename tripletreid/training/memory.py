"""A memory of the embeddings of earlier batches, for anchors to be compared with (Wang et al., CVPR 2020, XBM)."""
import tensorflow as tf


class Memory:
    """The last N embeddings, the newest batch first, and their identities. They have no gradient.

    Attributes:
        variables: dict {name: variable} of its state, for checkpoints.
    """

    def __init__(self, size, embedding_dim):
        self._embs = tf.Variable(tf.zeros([size, embedding_dim]), trainable=False)
        # As everywhere, int32 variables would be out of XLA's reach.
        self._pids = tf.Variable(tf.zeros([size], tf.int64), trainable=False)
        self.variables = {'memory_embs': self._embs, 'memory_pids': self._pids}

    def content(self):
        """Embeddings [N, D] float32 and the numbers of their identities [N] int32."""
        return tf.convert_to_tensor(self._embs), tf.cast(self._pids, tf.int32)

    def remember(self, embs, pids):
        """Put a whole batch, [B, D] and [B], in the place of the oldest ones, inside of a `tf.function`."""
        size = self._embs.shape[0]
        self._embs.assign(tf.concat([embs, self._embs], axis=0)[:size])
        self._pids.assign(tf.concat([tf.cast(pids, tf.int64), self._pids], axis=0)[:size])

"""The centre loss (Wen et al., ECCV 2016), as the strong baseline has it (Luo et al., arXiv 1903.07071, section 3.7)."""
import tensorflow as tf

from tripletreid.input_pipeline.sampling import CENTERS, stream_seed


class Centers:
    """A centre for each identity, which follows its embeddings at a rate of its own.

    Attributes:
        variables: dict {name: variable} of its state, for checkpoints.
    """

    def __init__(self, num_identities, embedding_dim, learning_rate, seed):
        """The centres are drawn from the standard normal distribution, by the seed."""
        self._centers = tf.Variable(tf.random.stateless_normal([num_identities, embedding_dim],
                                                               stream_seed(seed, CENTERS, 0)), trainable=False)
        self._learning_rate = learning_rate
        self.variables = {'centers': self._centers}

    def losses(self, embs, pids):
        """The squared distance of each embedding to the centre of its identity: [B, D] and [B] -> [B]."""
        return tf.reduce_sum(tf.square(embs - tf.stop_gradient(tf.gather(self._centers, pids))), axis=1)

    def follow(self, embs, pids):
        """A step of gradient descent on the mean of the losses of a whole batch, inside of a `tf.function`."""
        centers = tf.convert_to_tensor(self._centers)
        towards = tf.math.unsorted_segment_sum(embs - tf.gather(centers, pids), pids, centers.shape[0])
        batch_size = tf.cast(tf.shape(embs)[0], tf.float32)
        self._centers.assign(centers + self._learning_rate * 2 / batch_size * towards)

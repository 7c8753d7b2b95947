"""The centre loss (Wen et al., ECCV 2016), as in the strong baseline (Luo et al., arXiv 1903.07071, section 3.7)."""
import tensorflow as tf

from tripletreid.input_pipeline.sampling import CENTERS, stream_seed


class Objective:
    """Squared distance of each embedding to the centre of its identity (`--center_weight`).

    The centres follow the embeddings at a learning rate of their own.
    """
    curve = 'center_loss'
    reads = ()
    identity_axes = {'centers': 0}

    def __init__(self, args, num_identities):
        """Draw the centres from the standard normal distribution, by the seed."""
        centers = tf.random.stateless_normal([num_identities, args.embedding_dim], stream_seed(args.seed, CENTERS, 0))
        self._centers = tf.Variable(centers, trainable=False)
        self._learning_rate = args.center_learning_rate
        self.variables = {'centers': self._centers}

    def endpoints(self, endpoints):
        """Return nothing: the centres are compared with the embeddings themselves."""
        return {}

    def losses(self, outputs):
        """Return ‖embedding − centre‖², [B] float32."""
        centers = tf.stop_gradient(tf.gather(self._centers, outputs.pids))
        return tf.reduce_sum(tf.square(outputs.embs - centers), axis=1)

    def update(self, embs, pids):
        """Take a step of gradient descent on the mean loss of the whole batch."""
        centers = tf.convert_to_tensor(self._centers)
        towards = tf.math.unsorted_segment_sum(embs - tf.gather(centers, pids), pids, centers.shape[0])
        batch_size = tf.cast(tf.shape(embs)[0], tf.float32)
        self._centers.assign(centers + self._learning_rate * 2 / batch_size * towards)

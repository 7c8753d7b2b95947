"""Identity classification: the softmax cross-entropy of a classifier of the training identities (`--xent_weight`)."""
import tensorflow as tf

from tripletreid import plugins
from tripletreid.errors import InputError


class Objective:
    """Cross-entropy of each image, with a classifier on top of the raw embedding.

    The classifier is not part of the head, so a network that only embeds is built without it.
    """
    curve = 'cross_entropy'
    reads = ('logits',)
    identity_axes = {'classifier/weights': 1}

    def __init__(self, args, num_identities):
        self._classifier = plugins.load('classifiers', args.classifier)
        self._num_identities = num_identities
        self._label_smoothing, self._scale = args.label_smoothing, args.classifier_scale
        self._margin = self._classifier.MARGIN if args.classifier_margin is None else args.classifier_margin
        largest = self._classifier.LARGEST_MARGIN
        if largest is not None and self._margin > largest:
            raise InputError(f'--classifier_margin {self._margin} is above {largest}, the largest margin that makes sense '
                             f'for --classifier {args.classifier}.')
        self.variables = {}  # The weights of the classifier are the network's.

    def endpoints(self, endpoints):
        """Return {'logits': [B, I]}, for classifiers with a margin the cosines."""
        return {'logits': self._classifier.layer(self._num_identities)(endpoints['emb_raw'])}

    def losses(self, outputs):
        """Return the cross-entropy of each image, [B] float32."""
        logits = self._classifier.logits(outputs.endpoints['logits'], outputs.image_pids, self._scale, self._margin)
        return cross_entropy(logits, outputs.image_pids, self._label_smoothing)

    def update(self, embs, pids):
        """Do nothing: the optimizer trains the classifier."""


def cross_entropy(logits, pids, label_smoothing):
    """Return the softmax cross-entropy with smoothed labels (Szegedy et al., CVPR 2016, section 7).

    Args:
        logits: [B, I] float32, of I identities.
        pids: [B] int32, numbers of the true identities.
        label_smoothing: float, the fraction of the label that is spread evenly over all I identities.

    Returns: [B] float32.
    """
    log_probabilities = tf.nn.log_softmax(logits)
    true_log_probabilities = tf.gather(log_probabilities, pids, batch_dims=1)
    return -(1 - label_smoothing) * true_log_probabilities - label_smoothing * tf.reduce_mean(log_probabilities, axis=1)

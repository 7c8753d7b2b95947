"""Batch normalisation by TensorFlow's fused kernel: TensorFlow 1's numbers, and faster than Keras's own layer."""
import keras
import tensorflow as tf


class BatchNorm(keras.layers.Layer):
    """Batch norm of the channels (last axis) of [B, H, W, C] or [B, C]; scale and offset are learned.

    With `offset=False` the offset stays 0.

    In training, the moving variance is fed the *unbiased* variance of the batch, as in TensorFlow 1. Variables and
    statistics are float32 whatever the inputs are (float16 and bfloat16 under a mixed precision policy).
    With `trainable=False` the moving statistics normalise, and stay as they are, in training too, as in Keras.
    """

    def __init__(self, epsilon=1e-5, momentum=0.9, offset=True, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.momentum = momentum
        self.offset = offset

    def build(self, input_shape):
        shape = (input_shape[-1],)
        learned = {'shape': shape, 'dtype': 'float32', 'autocast': False}
        self.gamma = self.add_weight(name='gamma', initializer='ones', **learned)
        self.beta = self.add_weight(name='beta', initializer='zeros', **{**learned, 'trainable': self.offset})
        # Each replica of a distribution strategy keeps the statistics of its own images, without communication
        # at every step; a checkpoint gets their mean.
        moving = {**learned, 'trainable': False, 'synchronization': 'on_read', 'aggregation': 'mean'}
        self.moving_mean = keras.Variable(name='moving_mean', initializer='zeros', **moving)
        self.moving_variance = keras.Variable(name='moving_variance', initializer='ones', **moving)

    def call(self, inputs, training=False):
        training = bool(training) and self.trainable
        # The kernel takes four dimensions only.
        flat = len(inputs.shape) == 2
        images = inputs[:, None, None, :] if flat else inputs
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            images, self.gamma, self.beta, self.moving_mean, self.moving_variance, epsilon=self.epsilon,
            is_training=training, exponential_avg_factor=1 - self.momentum)
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return outputs[:, 0, 0, :] if flat else outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), 'epsilon': self.epsilon, 'momentum': self.momentum, 'offset': self.offset}


def with_fused_batch_norm(network):
    """Copy a Keras model, from the same input tensors, with this layer in place of Keras's own.

    Variables have the same names. The momentum is 0.9, as everywhere here, and moving variances are unbiased.
    """
    def copy(layer):
        if type(layer) is keras.layers.BatchNormalization:
            return BatchNorm(layer.epsilon, name=layer.name, dtype=layer.dtype_policy)
        return layer.from_config(layer.get_config())

    def call(layer, *inputs, **options):
        return layer(*inputs) if type(layer) is BatchNorm else layer(*inputs, **options)  # It takes no mask.

    return keras.models.clone_model(network, network.input, copy, call)


def with_keras_batch_norm(network):
    """Copy a model with Keras's own layers, so that it reads the files of weights that Keras distributes."""
    def copy(layer):
        if type(layer) is BatchNorm:
            return keras.layers.BatchNormalization(epsilon=layer.epsilon, name=layer.name)
        return layer.from_config(layer.get_config())

    return keras.models.clone_model(network, clone_function=copy)

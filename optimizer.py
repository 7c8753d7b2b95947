"""Adam by TensorFlow's own fused kernel, with the state that the original's optimizer kept, under its names.

One kernel a variable instead of Keras's dozen operations: the same numbers as in the original to the last bits, less to
trace at start-up, and checkpoints that both read.
"""
import tensorflow as tf


class Adam:
    """Adam (Kingma and Ba, 2015). β2 0.999, ε 1e-8 outside of the bias correction, as TF1's AdamOptimizer has it.

    Attributes:
        variables: dict {TF1 name: variable} of the optimizer's state, for checkpoints: `NAME/Adam` and `NAME/Adam_1`
            (first and second moment), `beta1_power`, `beta2_power`.
    """
    beta2 = 0.999
    epsilon = 1e-8

    def __init__(self, trainable_variables, beta1=0.9):
        """
        Args:
            trainable_variables: dict {TF1 name: variable}, float32.
            beta1: float.
        """
        self.trainable_variables = trainable_variables
        self.beta1 = beta1
        self.beta1_power = tf.Variable(beta1, dtype=tf.float32, trainable=False)
        self.beta2_power = tf.Variable(self.beta2, dtype=tf.float32, trainable=False)
        self.variables = {'beta1_power': self.beta1_power, 'beta2_power': self.beta2_power}
        for name, variable in trainable_variables.items():
            for slot in ('Adam', 'Adam_1'):
                self.variables[f'{name}/{slot}'] = tf.Variable(tf.zeros(variable.shape), trainable=False)

    def apply(self, gradients, learning_rate):
        """One step, inside of a `tf.function`.

        Args:
            gradients: list of float32 tensors in the order of `trainable_variables`.
            learning_rate: float32 scalar.
        """
        for (name, variable), gradient in zip(self.trainable_variables.items(), gradients):
            tf.raw_ops.ResourceApplyAdam(
                var=_handle(variable), m=self.variables[f'{name}/Adam'].handle,
                v=self.variables[f'{name}/Adam_1'].handle, beta1_power=self.beta1_power, beta2_power=self.beta2_power,
                lr=learning_rate, beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon, grad=gradient)
        self.beta1_power.assign(self.beta1_power * self.beta1)
        self.beta2_power.assign(self.beta2_power * self.beta2)


def _handle(variable):
    """The TensorFlow resource under a Keras variable."""
    return variable.value.handle


def learning_rate(step, initial, decay_start, iterations):
    """Learning rate at a step (paper, section 4.1, eq. 5): constant, then decaying exponentially to 0.001 of it.

    Args:
        step: int, 0-based.
        initial: float.
        decay_start: int, the step at which the decay starts; -1: no decay.
        iterations: int, length of the training.
    """
    if decay_start < 0 or iterations <= decay_start:
        return initial
    return initial * 0.001 ** (max(0, step - decay_start) / (iterations - decay_start))

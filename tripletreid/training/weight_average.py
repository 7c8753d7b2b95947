"""The average of a network's weights over its training steps, which embeds instead of the last ones (`--ema`)."""
import tensorflow as tf

from tripletreid.experiment.checkpoints import AVERAGE


class WeightAverage:
    """An exponential moving average (Polyak and Juditsky, 1992): a ← d·a + (1 − d)·w after each step.

    It begins with the weights that training begins with, and d is the same from the first step on (timm's ModelEma; not
    TF1's variant with `num_updates`, whose d rises to 0.9998 only in 45,000 steps). It is of all that a network computes
    with: trained variables, and the moving statistics of batch norm, without which averaged weights would meet those of
    others (so do timm and TF-Slim, other than TF1's default).

    Attributes:
        variables: dict {name: variable}, for checkpoints: `NAME/ExponentialMovingAverage`, as TF1 names it.
    """

    def __init__(self, names, decay):
        """
        Args:
            names: {TF1 name: variable} of the network.
            decay: float, d.
        """
        self.decay = decay
        self._averaged = {name: variable for name, variable in names.items() if 'float' in str(variable.dtype)}
        self.variables = {f'{name}{AVERAGE}': _like(variable) for name, variable in self._averaged.items()}

    def begin(self):
        """Set the average to the weights as they are."""
        for name, variable in self._averaged.items():
            self.variables[f'{name}{AVERAGE}'].assign(variable.value)

    def update(self):
        """Behind a training step, inside of what each replica runs."""
        for name, variable in self._averaged.items():
            average = self.variables[f'{name}{AVERAGE}']
            average.assign_sub((1 - self.decay) * (average - variable.value))


def _like(variable):
    """A new variable for an average. Statistics differ between replicas, see `batch_norm`, and so do their averages."""
    options = {} if variable.trainable else {'synchronization': tf.VariableSynchronization.ON_READ,
                                             'aggregation': tf.VariableAggregation.MEAN}
    return tf.Variable(tf.zeros(variable.shape), trainable=False, **options)

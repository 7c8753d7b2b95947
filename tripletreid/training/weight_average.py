"""An exponential moving average (EMA) of a network's weights, which embeds instead of the last weights (`--ema`)."""
import tensorflow as tf

from tripletreid.experiment.checkpoints import AVERAGE


class WeightAverage:
    """An exponential moving average (Polyak and Juditsky, 1992): a ← d·a + (1 − d)·w after each step.

    It begins with the initial weights, and d is constant from the first step on (timm's ModelEma; not TF1's variant with
    `num_updates`, whose d rises to 0.9998 only in 45,000 steps). It averages all that a network computes with: trained
    variables, and the moving statistics of batch norm, as in timm and TF-Slim but not in TF1's default. Otherwise averaged
    weights would be combined with the statistics of other weights.

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
        """Set the average to the current weights."""
        for name, variable in self._averaged.items():
            self.variables[f'{name}{AVERAGE}'].assign(variable.value)

    def update(self):
        """Move the average after a training step, inside of the function that each replica runs."""
        for name, variable in self._averaged.items():
            average = self.variables[f'{name}{AVERAGE}']
            average.assign_sub((1 - self.decay) * (average - variable.value))


def _like(variable):
    """Create the variable of an average; with one value per replica for statistics, see `batch_norm`."""
    options = {} if variable.trainable else {'synchronization': tf.VariableSynchronization.ON_READ,
                                             'aggregation': tf.VariableAggregation.MEAN}
    return tf.Variable(tf.zeros(variable.shape), trainable=False, **options)

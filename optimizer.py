"""Adam by TensorFlow's own fused kernel, with the state that the original's optimizer kept, under its names; schedules.

One kernel a variable instead of Keras's dozen operations: the same numbers as in the original to the last bits, less to
trace at start-up, and checkpoints that both read.
"""
import math

import tensorflow as tf

BETA1 = 0.9


class Adam:
    """Adam (Kingma and Ba, 2015). β2 0.999, ε 1e-8 outside of the bias correction, as TF1's AdamOptimizer has it.

    Attributes:
        variables: dict {TF1 name: variable} of the optimizer's state, for checkpoints: `NAME/Adam` and `NAME/Adam_1`
            (first and second moment), `beta1_power`, `beta2_power`.
    """
    beta2 = 0.999
    epsilon = 1e-8

    def __init__(self, trainable_variables, weight_decay=0.0):
        """
        Args:
            trainable_variables: dict {TF1 name: variable}, float32.
            weight_decay: float; so many times a variable is added to its gradient, as PyTorch's Adam has it: the
                gradient of an L2 penalty, which Adam scales like the rest of the gradient.
        """
        self.trainable_variables = trainable_variables
        self.weight_decay = weight_decay
        self.beta1_power = tf.Variable(BETA1, dtype=tf.float32, trainable=False)
        self.beta2_power = tf.Variable(self.beta2, dtype=tf.float32, trainable=False)
        self.variables = {'beta1_power': self.beta1_power, 'beta2_power': self.beta2_power}
        for name, variable in trainable_variables.items():
            for slot in ('Adam', 'Adam_1'):
                self.variables[f'{name}/{slot}'] = tf.Variable(tf.zeros(variable.shape), trainable=False)

    def apply(self, gradients, learning_rate, beta1=BETA1):
        """One step, inside of a `tf.function`.

        Args:
            gradients: dict {TF1 name: float32 tensor}; variables that it does not name stay as they are.
            learning_rate: float32 scalar.
            beta1: float32 scalar. The bias correction is exact while it stays the same, and has long vanished (0.9^100
                is 3e-5) when a schedule changes it.
        """
        for name, gradient in gradients.items():
            variable = self.trainable_variables[name]
            if self.weight_decay:
                gradient += self.weight_decay * variable.value
            tf.raw_ops.ResourceApplyAdam(
                var=_handle(variable), m=self.variables[f'{name}/Adam'].handle,
                v=self.variables[f'{name}/Adam_1'].handle, beta1_power=self.beta1_power, beta2_power=self.beta2_power,
                lr=learning_rate, beta1=beta1, beta2=self.beta2, epsilon=self.epsilon, grad=gradient)
        self.beta1_power.assign(self.beta1_power * beta1)
        self.beta2_power.assign(self.beta2_power * self.beta2)


def _handle(variable):
    """The TensorFlow resource under a Keras variable."""
    return variable.value.handle


def clip(gradients, largest_norm):
    """Scale gradients, a list, such that their norm taken together is at most `largest_norm`; None: as they are."""
    return gradients if largest_norm is None else tf.clip_by_global_norm(gradients, largest_norm)[0]


def learning_rate(step, args):
    """The learning rate at a step.

    It rises in a straight line from 1/W of its full value over the W iterations of the warm-up, and falls by schedule:
    `exponential` (paper, section 4.1): from the start of the decay on, to a thousandth of it at the end of the training.
    `cosine`: from the start of the decay on, along half a cosine to 0 at the end (Loshchilov and Hutter, ICLR 2017).
    `step`: times a factor at each of the given iterations.
    `constant`: not at all.

    Args:
        step: int, 0-based.
        args: of `train.py`.
    """
    rate = args.learning_rate
    decay_start, iterations = args.decay_start_iteration, args.train_iterations
    if args.lr_schedule == 'step':
        rate *= args.lr_step_factor ** sum(step >= int(start) for start in args.lr_steps.split(','))
    elif args.lr_schedule != 'constant' and 0 <= decay_start < iterations:
        progress = max(0, step - decay_start) / (iterations - decay_start)
        rate *= 0.001 ** progress if args.lr_schedule == 'exponential' else (1 + math.cos(math.pi * progress)) / 2
    if step < args.warmup_iterations:
        rate *= (step + 1) / args.warmup_iterations
    return rate


def beta1(step, args):
    """Adam's β1 at a step: 0.9, and `--decay_beta1` from the start of the decay on (0.5 in the paper, section 4.1)."""
    decaying = 0 <= args.decay_start_iteration <= step
    return args.decay_beta1 if decaying and args.decay_beta1 is not None else BETA1

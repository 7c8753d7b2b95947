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
            (first and second moment), `beta1_power`, `beta2_power`; `late_beta1_power` and `late_beta2_power` for
            variables that join later.
    """
    beta2 = 0.999
    epsilon = 1e-8

    def __init__(self, trainable_variables, weight_decay=0.0, late=()):
        """
        Args:
            trainable_variables: dict {TF1 name: variable}, float32.
            weight_decay: float; so many times a variable is added to its gradient, as PyTorch's Adam has it: the
                gradient of an L2 penalty, which Adam scales like the rest of the gradient.
            late: names of variables that the first steps leave out. The bias correction of their moments begins with
                their own first step; that of the others has vanished by then, and would let them leap.
        """
        self.trainable_variables = trainable_variables
        self.weight_decay = weight_decay
        self.variables = {}
        self.groups = [(self._powers(''), [name for name in trainable_variables if name not in late])]
        if late:
            self.groups.append((self._powers('late_'), list(late)))
        for name, variable in trainable_variables.items():
            for slot in ('Adam', 'Adam_1'):
                self.variables[f'{name}/{slot}'] = tf.Variable(tf.zeros(variable.shape), trainable=False)

    def _powers(self, prefix):
        """The powers of β1 and β2, two new variables, whose names begin with a prefix."""
        beta1_power = tf.Variable(BETA1, dtype=tf.float32, trainable=False)
        beta2_power = tf.Variable(self.beta2, dtype=tf.float32, trainable=False)
        self.variables |= {f'{prefix}beta1_power': beta1_power, f'{prefix}beta2_power': beta2_power}
        return beta1_power, beta2_power

    def apply(self, gradients, learning_rate, beta1=BETA1):
        """One step, inside of a `tf.function`.

        Args:
            gradients: dict {TF1 name: float32 tensor}; variables that it does not name stay as they are.
            learning_rate: float32 scalar.
            beta1: float32 scalar. The bias correction is exact while it stays the same, and has long vanished (0.9^100
                is 3e-5) when a schedule changes it.
        """
        for (beta1_power, beta2_power), names in self.groups:
            updated = [name for name in names if name in gradients]
            for name in updated:
                variable, gradient = self.trainable_variables[name], gradients[name]
                if self.weight_decay:
                    gradient += self.weight_decay * variable.value
                tf.raw_ops.ResourceApplyAdam(
                    var=_handle(variable), m=self.variables[f'{name}/Adam'].handle,
                    v=self.variables[f'{name}/Adam_1'].handle, beta1_power=beta1_power, beta2_power=beta2_power,
                    lr=learning_rate, beta1=beta1, beta2=self.beta2, epsilon=self.epsilon, grad=gradient)
            if updated:
                beta1_power.assign(beta1_power * beta1)
                beta2_power.assign(beta2_power * self.beta2)


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., ICLR 2018, section 3.2).

    The gradients of a float16 net are computed of a loss that is so many times larger, lest they are rounded to zero. A
    step whose gradients overflow is left out and halves the scale; 2000 good ones in a row double it. Other precisions
    have the range of float32, and nothing is scaled.

    Attributes:
        variables: dict {name: variable} of its state, for checkpoints.
    """
    good_steps_to_double = 2000

    def __init__(self, precision):
        """Takes the value of `--mixed_precision`."""
        self.is_needed = precision == 'float16'
        self.variables = {}
        if self.is_needed:
            self.scale = tf.Variable(2.0 ** 15, dtype=tf.float32, trainable=False)
            self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.variables = {'loss_scale': self.scale, 'loss_scale_good_steps': self.good_steps}

    def scaled(self, loss):
        """The loss [] to compute the gradients of."""
        return loss * self.scale if self.is_needed else loss

    def unscaled(self, gradients):
        """The gradients, a list, of the loss itself."""
        return [gradient / self.scale for gradient in gradients] if self.is_needed else gradients

    def apply(self, gradient_norm, update):
        """Call `update()`, with float16 only if the norm of the gradients is finite, and adapt the scale.

        Returns: the scale of this step's loss, float32 [].
        """
        if not self.is_needed:
            update()
            return tf.constant(1.0)
        scale_of_step = tf.identity(self.scale)
        finite = tf.math.is_finite(gradient_norm)
        tf.cond(finite, update, lambda: None)
        good_steps = tf.where(finite, self.good_steps + 1, 0)
        doubled = good_steps == self.good_steps_to_double
        scale = tf.where(finite, tf.where(doubled, 2 * self.scale, self.scale), tf.maximum(self.scale / 2, 1.0))
        self.scale.assign(scale)
        self.good_steps.assign(tf.where(doubled, tf.zeros_like(good_steps), good_steps))
        return scale_of_step

    def left_out(self, gradient_norm, scale):
        """Whether a step was left out that had gradients of this norm at this scale, two numbers."""
        return self.is_needed and not math.isfinite(gradient_norm) and scale > 1


def _handle(variable):
    """The TensorFlow resource under a Keras variable."""
    return variable.value.handle


def clip(gradients, largest_norm):
    """Scale gradients, a list, such that their norm taken together is at most `largest_norm`; None: as they are."""
    return gradients if largest_norm is None else tf.clip_by_global_norm(gradients, largest_norm)[0]


def learning_rate(step, args):
    """The learning rate at a step.

    It rises in a straight line from 1/W of its full value over the W iterations of the warm-up, and falls by schedule:
    `exponential` (paper, section 4.1): from the start of the decay on, to a thousandth at the end of the training.
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

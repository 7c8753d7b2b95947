"""Optimizers by TensorFlow's own fused kernels, with the state that TF1's kept, under its names; rates and schedules.

One kernel a variable instead of Keras's dozen operations: the same numbers as in the original to the last bits, less to
trace at start-up, and checkpoints that both read.
"""
import math
import re

import tensorflow as tf

from tripletreid.errors import InputError

BETA1 = 0.9
MOMENTUM = 0.9


class Optimizer:
    """What all of them share: the variables, the rate of each, the weight decay of PyTorch's Adam and SGD, the slots.

    Attributes:
        variables: dict {TF1 name: variable} of the optimizer's state, for checkpoints: a `NAME/SLOT` for each of `slots`.
    """
    slots = ()

    def __init__(self, trainable_variables, weight_decay=0.0, rate_factors=None):
        """
        Args:
            trainable_variables: dict {TF1 name: variable}, float32.
            weight_decay: float; so many times a variable is added to its gradient: the gradient of an L2 penalty, which
                goes through the optimizer like the rest of the gradient.
            rate_factors: dict {TF1 name: float}, by which the learning rate of a variable is multiplied; None: 1 for all.
        """
        self.trainable_variables = trainable_variables
        self.weight_decay = weight_decay
        self.rate_factors = rate_factors or {}
        self.variables = {f'{name}/{slot}': tf.Variable(tf.zeros(variable.shape), trainable=False)
                          for name, variable in trainable_variables.items() for slot in self.slots}

    def _rate(self, name, learning_rate):
        """The learning rate of a variable."""
        factor = self.rate_factors.get(name, 1)
        return learning_rate if factor == 1 else factor * learning_rate

    def _decayed(self, name, gradient, rate):
        """The gradient of a variable with its weight decay."""
        return gradient + self.weight_decay * self.trainable_variables[name].value if self.weight_decay else gradient


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015). β2 0.999, ε 1e-8 outside of the bias correction, as TF1's AdamOptimizer has it.

    Its state is, beside `NAME/Adam` and `NAME/Adam_1` (first and second moment), `beta1_power`, `beta2_power`, and
    `late_beta1_power` and `late_beta2_power` for variables that join later.
    """
    slots = ('Adam', 'Adam_1')
    beta2 = 0.999
    epsilon = 1e-8

    def __init__(self, trainable_variables, weight_decay=0.0, late=(), rate_factors=None):
        """
        Args:
            trainable_variables, weight_decay, rate_factors: of `Optimizer`.
            late: names of variables that the first steps leave out. The bias correction of their moments begins with
                their own first step; that of the others has vanished by then, and would let them leap.
        """
        super().__init__(trainable_variables, weight_decay, rate_factors)
        self.groups = [(self._powers(''), [name for name in trainable_variables if name not in late])]
        if late:
            self.groups.append((self._powers('late_'), list(late)))

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
                rate = self._rate(name, learning_rate)
                gradient = self._decayed(name, gradients[name], rate)
                tf.raw_ops.ResourceApplyAdam(
                    var=_handle(self.trainable_variables[name]), m=self.variables[f'{name}/Adam'].handle,
                    v=self.variables[f'{name}/Adam_1'].handle, beta1_power=beta1_power, beta2_power=beta2_power,
                    lr=rate, beta1=beta1, beta2=self.beta2, epsilon=self.epsilon, grad=gradient)
            if updated:
                beta1_power.assign(beta1_power * beta1)
                beta2_power.assign(beta2_power * self.beta2)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), in PyTorch's parameters.

    Before its step, a variable shrinks by its learning rate times the weight decay. Only kernels do, see `is_kernel`.
    """

    def _decayed(self, name, gradient, rate):
        if is_kernel(name):
            variable = self.trainable_variables[name]
            tf.raw_ops.AssignSubVariableOp(resource=_handle(variable), value=rate * self.weight_decay * variable.value)
        return gradient


class Momentum(Optimizer):
    """SGD with momentum m, as PyTorch's SGD without dampening and TF1's MomentumOptimizer have it.

    Of gradient g and learning rate r: a ← m·a + g, then w ← w − r·a, or with Nesterov's w ← w − r·(g + m·a). Its state is
    `NAME/Momentum`, which is a. It holds gradients and no steps: the rate of the moment counts for all of it.
    """
    slots = ('Momentum',)

    def __init__(self, trainable_variables, weight_decay=0.0, momentum=MOMENTUM, nesterov=False, rate_factors=None):
        """
        Args:
            trainable_variables, weight_decay, rate_factors: of `Optimizer`.
            momentum: float, m.
            nesterov: whether the step looks ahead.
        """
        super().__init__(trainable_variables, weight_decay, rate_factors)
        self.momentum = momentum
        self.nesterov = nesterov

    def apply(self, gradients, learning_rate, beta1=None):
        """As `Adam.apply`; there is no β1 here."""
        for name, gradient in gradients.items():
            rate = self._rate(name, learning_rate)
            tf.raw_ops.ResourceApplyMomentum(
                var=_handle(self.trainable_variables[name]), accum=self.variables[f'{name}/Momentum'].handle, lr=rate,
                grad=self._decayed(name, gradient, rate), momentum=self.momentum, use_nesterov=self.nesterov)


def build(args, trainable_variables, late=(), rate_factors=None):
    """The optimizer of `--optimizer` for the arguments of `train.py`; see `Adam` for the others."""
    if args.optimizer == 'sgd':
        momentum = MOMENTUM if args.momentum is None else args.momentum
        return Momentum(trainable_variables, args.weight_decay, momentum, args.nesterov, rate_factors)
    kind = {'adam': Adam, 'adamw': AdamW}[args.optimizer]
    return kind(trainable_variables, args.weight_decay, late, rate_factors)


def is_kernel(name):
    """Whether a variable is a kernel, by its TF1 name: of a convolution, a dense layer, attention.

    Scales and offsets of norms, biases, position embeddings and tokens are none, whatever their shape.
    """
    return re.search(r'(weights|kernel)$', name) is not None


def rate_factors(args, names, names_of_body, stages):
    """By what `--layer_decay` and `--head_learning_rate_factor` multiply the learning rate of variables.

    The last stage of the body has the layer decay once, each stage below it once more (as ELECTRA, ICLR 2020, and BEiT,
    ICLR 2022, fine-tune). What is in no stage, behind the last one, has the rate as it is, and so has the head, but for
    its own factor.

    Args:
        args: of `train.py`.
        names: TF1 names of the variables.
        names_of_body: those among them that are of the net, and not of what is on top of it.
        stages: the net's `STAGES`: regular expressions, from the image to the head, that the beginning of a name matches;
            None: it has none.

    Returns: dict {name: float}.

    Raises:
        InputError: --layer_decay for a net without stages.
    """
    if args.layer_decay and not stages:
        raise InputError(f'--layer_decay: the net {args.model_name} does not say which of its variables belong to which '
                         f'stage. Leave the flag out, or list its STAGES in nets/{args.model_name}.py.')
    factors = {}
    for name in names:
        if name not in names_of_body:
            factors[name] = args.head_learning_rate_factor
        elif args.layer_decay:
            above = [len(stages) - place for place, stage in enumerate(stages) if re.match(stage, name)]
            factors[name] = args.layer_decay ** above[0] if above else 1.0
    return factors


def by_factor(factors):
    """Names by the factor that they have in what `rate_factors` returns, {factor: list of names}; without those of 1."""
    names = {}
    for name, factor in factors.items():
        if factor != 1:
            names.setdefault(factor, []).append(name)
    return names


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

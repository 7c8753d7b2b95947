"""Optimizers by TensorFlow's fused kernels, with the state of TF1's optimizers under its names.

There is one kernel per variable, where Keras has a dozen operations. So the numbers are the original's to the last bit, the
start-up traces less, and both read the same checkpoints.
"""
import re

import tensorflow as tf

from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.training.schedule import BETA1

MOMENTUM = 0.9


class Optimizer:
    """Common base: the variables, their learning rates, the weight decay of PyTorch's Adam and SGD, the slots.

    Attributes:
        variables: dict {TF1 name: variable} of the optimizer's state, for checkpoints: a `NAME/SLOT` for each of `slots`.
    """
    slots = ()

    def __init__(self, trainable_variables, weight_decay=0.0, rate_factors=None):
        """
        Args:
            trainable_variables: dict {TF1 name: variable}, float32.
            weight_decay: float; a variable times this is added to its gradient. It is the gradient of an L2 penalty, which
                passes through the optimizer like the rest of the gradient.
            rate_factors: dict {TF1 name: learning-rate multiplier of the variable}; None: 1 for all.
        """
        self.trainable_variables = trainable_variables
        self.weight_decay = weight_decay
        self.rate_factors = rate_factors or {}
        self.variables = {f'{name}/{slot}': tf.Variable(tf.zeros(variable.shape), trainable=False)
                          for name, variable in trainable_variables.items() for slot in self.slots}

    def _rate(self, name, learning_rate):
        """Return the learning rate of a variable."""
        factor = self.rate_factors.get(name, 1)
        return learning_rate if factor == 1 else factor * learning_rate

    def _decayed(self, name, gradient, rate):
        """Return the gradient of a variable with its weight decay."""
        return gradient + self.weight_decay * self.trainable_variables[name].value if self.weight_decay else gradient


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015). β2 0.999, ε 1e-8 outside of the bias correction, as in TF1's AdamOptimizer.

    Its state is `NAME/Adam` and `NAME/Adam_1` (first and second moment), `beta1_power` and `beta2_power`, and for variables
    that join later `late_beta1_power` and `late_beta2_power`.
    """
    slots = ('Adam', 'Adam_1')
    beta2 = 0.999
    epsilon = 1e-8

    def __init__(self, trainable_variables, weight_decay=0.0, late=(), rate_factors=None):
        """
        Args:
            trainable_variables, weight_decay, rate_factors: of `Optimizer`.
            late: names of variables that the first steps do not train. The bias correction of their moments begins with
                their own first step. The correction of the other variables has vanished by then; with it the late
                variables would leap.
        """
        super().__init__(trainable_variables, weight_decay, rate_factors)
        self.groups = [(self._powers(''), [name for name in trainable_variables if name not in late])]
        if late:
            self.groups.append((self._powers('late_'), list(late)))

    def _powers(self, prefix):
        """Create the powers of β1 and β2, two variables whose names begin with a prefix."""
        beta1_power = tf.Variable(BETA1, dtype=tf.float32, trainable=False)
        beta2_power = tf.Variable(self.beta2, dtype=tf.float32, trainable=False)
        self.variables |= {f'{prefix}beta1_power': beta1_power, f'{prefix}beta2_power': beta2_power}
        return beta1_power, beta2_power

    def apply(self, gradients, learning_rate, beta1=BETA1):
        """Take one step, inside of a `tf.function`.

        Args:
            gradients: dict {TF1 name: float32 tensor}; variables without a gradient keep their value.
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

    Before its step, a kernel (see `is_kernel`) shrinks by its learning rate times the weight decay.
    """

    def _decayed(self, name, gradient, rate):
        if is_kernel(name):
            variable = self.trainable_variables[name]
            tf.raw_ops.AssignSubVariableOp(resource=_handle(variable), value=rate * self.weight_decay * variable.value)
        return gradient


class Momentum(Optimizer):
    """SGD with momentum m, as in PyTorch's SGD without dampening and TF1's MomentumOptimizer.

    With gradient g and learning rate r: a ← m·a + g, then w ← w − r·a, or with Nesterov's momentum w ← w − r·(g + m·a). Its
    state a is `NAME/Momentum`. It accumulates gradients, not steps, so the current learning rate applies to all of it.
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
        """See `Adam.apply`; β1 is not used."""
        for name, gradient in gradients.items():
            rate = self._rate(name, learning_rate)
            tf.raw_ops.ResourceApplyMomentum(
                var=_handle(self.trainable_variables[name]), accum=self.variables[f'{name}/Momentum'].handle, lr=rate,
                grad=self._decayed(name, gradient, rate), momentum=self.momentum, use_nesterov=self.nesterov)


def build_optimizer(args, trainable_variables, body_names):
    """Build the optimizer of `--optimizer`.

    Args:
        args: of `train.py`.
        trainable_variables: dict {TF1 name: variable}, float32.
        body_names: TF1 names of the net's variables, without the layers on top of it.

    Raises:
        InputError: flags about learning rates that this net or head cannot take.
    """
    body_names = [name for name in trainable_variables if name in body_names]
    if args.head_learning_rate_factor != 1 and len(body_names) == len(trainable_variables):
        raise InputError(f'--head_learning_rate_factor has no effect: the head {args.head_name} has nothing to train.')
    stages = getattr(plugins.load('nets', args.model_name), 'STAGES', None) if args.layer_decay else None
    factors = rate_factors(args, trainable_variables, body_names, stages)
    if args.optimizer == 'sgd':
        momentum = MOMENTUM if args.momentum is None else args.momentum
        return Momentum(trainable_variables, args.weight_decay, momentum, args.nesterov, factors)
    late = body_names if args.freeze_body_iterations else []
    return {'adam': Adam, 'adamw': AdamW}[args.optimizer](trainable_variables, args.weight_decay, late, factors)


def is_kernel(name):
    """Return whether a variable is a kernel of a convolution, a dense layer or attention, by its TF1 name.

    Scales and offsets of norms, biases, position embeddings and tokens are not kernels, whatever their shape.
    """
    return re.search(r'(weights|kernel)$', name) is not None


def rate_factors(args, names, body_names, stages):
    """Return the learning-rate multipliers of variables (`--layer_decay`, `--head_learning_rate_factor`).

    The multiplier of the body's last stage is the layer decay, and each stage below has one more factor of it, as in the
    fine-tuning of ELECTRA (ICLR 2020) and BEiT (ICLR 2022). Variables of the body after the last stage have 1, the head has
    its own multiplier.

    Args:
        args: of `train.py`.
        names: TF1 names of the variables.
        body_names: those among them that belong to the net, not to the layers on top of it.
        stages: the net's `STAGES`: regular expressions, from the image to the head, that the beginning of a name matches;
            None: it has none.

    Returns: dict {name: float}.

    Raises:
        InputError: --layer_decay for a net without stages.
    """
    if args.layer_decay and not stages:
        raise InputError(f'--layer_decay: the net {args.model_name} does not list which of its variables belong to which '
                         f'stage. Leave the flag out, or list its STAGES in nets/{args.model_name}.py.')
    factors = {}
    for name in names:
        if name not in body_names:
            factors[name] = args.head_learning_rate_factor
        elif args.layer_decay:
            above = [len(stages) - place for place, stage in enumerate(stages) if re.match(stage, name)]
            factors[name] = args.layer_decay ** above[0] if above else 1.0
    return factors


def by_factor(factors):
    """Group the names in the result of `rate_factors`: {multiplier: list of names}, without the multiplier 1."""
    names = {}
    for name, factor in factors.items():
        if factor != 1:
            names.setdefault(factor, []).append(name)
    return names


def _handle(variable):
    """Return the TensorFlow resource of a Keras variable."""
    return variable.value.handle


def clip(gradients, largest_norm):
    """Scale gradients, a list, so that their global norm is at most `largest_norm`; None: return them unchanged."""
    return gradients if largest_norm is None else tf.clip_by_global_norm(gradients, largest_norm)[0]

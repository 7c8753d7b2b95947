"""The settings of a step by its number: learning rate, β1, whether the body is frozen, whether the memory is used."""
import math
from typing import NamedTuple

import tensorflow as tf

from tripletreid.experiment import flag_checks

BETA1 = 0.9


class Schedule(NamedTuple):
    """The settings of one training step.

    learning_rate, beta1: float32 scalar tensors, of the optimizer.
    body_is_frozen, memory_is_used: Python bools; the step is traced once for each of their values.
    """
    learning_rate: tf.Tensor
    beta1: tf.Tensor
    body_is_frozen: bool = False
    memory_is_used: bool = False


def at(step, args):
    """Return the `Schedule` of a step (0-based), given the arguments of `train.py`."""
    return Schedule(tf.constant(learning_rate(step, args), tf.float32), tf.constant(beta1(step, args), tf.float32),
                    body_is_frozen=step < args.freeze_body_iterations,
                    memory_is_used=bool(args.memory) and step >= flag_checks.memory_start(args))


def learning_rate(step, args):
    """Return the learning rate at a step.

    It rises linearly from 1/W of its full value over the W iterations of the warm-up, and falls by schedule:
    `exponential` (paper, section 4.1): from the start of the decay on, to a thousandth at the end of the training.
    `cosine`: from the start of the decay on, along half a cosine to 0 at the end (Loshchilov and Hutter, ICLR 2017).
    `step`: by a factor at each of the given iterations.
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
    """Return Adam's β1 at a step: 0.9, and `--decay_beta1` from the start of the decay on (paper, section 4.1: 0.5)."""
    decaying = 0 <= args.decay_start_iteration <= step
    return args.decay_beta1 if decaying and args.decay_beta1 is not None else BETA1

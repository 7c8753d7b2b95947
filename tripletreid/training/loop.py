"""The training loop: compute, report, store and validate steps until the end or an interruption."""
import time

import numpy as np
import tensorflow as tf

from tripletreid.distribute import agreement
from tripletreid.errors import InputError
from tripletreid.experiment import best_checkpoint, checkpoints
from tripletreid.training import schedule


class Loop:
    """Runs training steps, and reports each step while the next one is computed.

    A GPU computes a step asynchronously. Reporting the step before takes Python milliseconds (numbers, log lines, the next
    batch), for which the GPU need not wait.

    No checkpoint is written after a number that is not finite, and every validation has a checkpoint of its own.
    """

    def __init__(self, args, state, strategy, reporter, validator, interruption, fids, log):
        """
        Args:
            args: of `train.py`.
            state: `TrainState`.
            strategy: the `tf.distribute.Strategy` that computes.
            reporter: `Reporter`; None for all workers except the chief, which alone reports and writes.
            validator: `Validation`, or None.
            interruption: `Interruption`.
            fids: file ids of the training set [N].
            log: logger.
        """
        self._args, self._state, self._strategy = args, state, strategy
        self._reporter, self._validator, self._interruption = reporter, validator, interruption
        self._fids, self._log = fids, log
        self._first_step = self._saved_step = state.step
        self._unreported = None

    def run(self, train_step, data, why_unreadable):
        """Train from the state's step on.

        Args:
            train_step: function (batch, `Schedule`) -> dict of tensors, see `train.train_step`. It may return before they
                are computed.
            data: iterator over the batches.
            why_unreadable: function (step, error) -> the InputError to end with when a batch cannot be loaded.

        Raises:
            InputError: a batch that cannot be loaded, or a number that is not finite.
        """
        args, unreadable = self._args, None
        if self._validator and self._validator.is_due(self._first_step):  # The run was interrupted just then.
            self._validate()
        for step in range(self._first_step, args.train_iterations):
            started = time.monotonic()
            try:
                batch = next(data)
            except tf.errors.OpError as error:
                unreadable = why_unreadable(step, error)
            if agreement.any_worker(self._strategy, self._interruption.requested or unreadable):
                self._report()
                if not unreadable:
                    self._log.info('Interrupted by %s after %d iterations.',
                                   self._interruption.requested or 'another worker', step)
                break
            settings = schedule.at(step, args)
            result = train_step(batch, settings)
            self._report(until=started)
            self._unreported = step, settings.learning_rate, result, started
            if step == self._first_step:  # The sign of life comes after one step, not two.
                self._report()
            self._store_and_validate_where_due(step + 1)
        self._report()
        if self._state.step != self._saved_step:
            self._save()
        if unreadable:
            raise unreadable

    def _report(self, until=None):
        """Wait for the step that is not reported yet, if any, check its numbers, and report it.

        Args:
            until: when the next step started; None: no step follows yet, and this one lasts until its numbers exist.
        """
        if self._unreported is None:
            return
        (step, learning_rate, result, started), self._unreported = self._unreported, None
        result = {name: value.numpy() for name, value in result.items()}
        self._check_finite(step, result)
        seconds = (until or time.monotonic()) - started
        if self._reporter:
            self._reporter.iteration(step, result['rows'], result, float(learning_rate), seconds)

    def _check_finite(self, step, result):
        """Raise InputError for numbers that are not finite; a skipped step is only reported."""
        must_be_finite = ['loss', 'emb', 'gradient_norm']
        if self._state.loss_scale.skipped(result['gradient_norm'], result['loss_scale']):
            self._log.warning('Iteration %d skipped: gradients overflowed float16. Loss scale reduced to %g.', step + 1,
                              result['loss_scale'] / 2)
            must_be_finite.remove('gradient_norm')
        if not all(np.isfinite(result[name]).all() for name in must_be_finite):
            good = checkpoints.prefix(self._args.experiment_root, self._saved_step)
            raise InputError(
                f'Iteration {step + 1} gave a loss of {result["loss"]} and a gradient of norm '
                f'{result["gradient_norm"]} on {", ".join(self._fids[result["rows"]])}. The run stops here; '
                f'{f"the last good checkpoint is {good}" if step else "nothing was trained"}. Try a lower '
                f'--learning_rate.')

    def _store_and_validate_where_due(self, step):
        """Write a checkpoint and validate after `step` iterations, if they are due."""
        frequency = self._args.checkpoint_frequency
        validation_is_due = self._validator and self._validator.is_due(step)
        if validation_is_due or frequency and step % frequency == 0:
            self._report()
            self._save()
            if validation_is_due:
                self._validate()

    def _save(self):
        """Store the state after all reports. All workers have to call this; the chief writes."""
        step, values = self._state.step, self._state.values()
        if self._reporter:
            self._reporter.flush()
            checkpoints.save(self._args.experiment_root, step, values, self._args.keep_checkpoints, self._first_step)
            self._log.info('Saved %s.', checkpoints.prefix(self._args.experiment_root, step))
        self._saved_step = step

    def _validate(self):
        """Validate the current weights, unless an interruption is requested meanwhile; the chief stores the result."""
        step = self._state.step
        result = self._validator.evaluate(step, self._state.values(), self._interruption)
        if result and self._reporter:
            best_checkpoint.note(self._args.experiment_root, step, result)
            self._reporter.validation(step, result)

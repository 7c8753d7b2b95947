"""Report a run while it trains: log lines, TensorBoard, detailed logs, a warning when the embeddings collapse."""
import collections
import concurrent.futures

import numpy as np

from tripletreid.experiment import best_checkpoint
from tripletreid.experiment.detailed_logs import DetailedLogs
from tripletreid.experiment.event_files import VALIDATION_TAG, TensorBoard, forget_events_after
from tripletreid.experiment.train_log import VALIDATION, forget_iterations_after, iteration_line
from tripletreid.input_pipeline import sampling
from tripletreid.modeling import pretrained
from tripletreid.training import optimizer


def log_data(log, args, train_set, identities, devices):
    """Log the data of a run, and warn of identities that a metric loss can use as negatives only.

    Args:
        log: logger.
        args: of `train.py`.
        train_set: the training `Dataset`.
        identities: its `Identities`.
        devices: description of the devices that compute.
    """
    log.info('Training on %d images of %d identities, on %s.', len(train_set), len(identities.names), devices)
    for sentence in sampling.shares_of_sets(identities, train_set, args.batch_p):
        log.info(sentence)
    if args.crop_augment:
        log.info('Images are loaded at %dx%d, for random crops of %dx%d.', args.pre_crop_height, args.pre_crop_width,
                 args.net_input_height, args.net_input_width)
    few_positives = sampling.check_positives(identities, train_set, args)
    if few_positives:
        log.warning(few_positives)


def log_state(log, state):
    """Log the learning-rate multipliers of a `TrainState`, and the notices of its sampler."""
    for factor, names in optimizer.by_factor(state.optimizer.rate_factors).items():
        log.info('Learning-rate multiplier %.3g: %s.', factor, pretrained.listed(names))
    for notice in state.sampler.notices:
        log.warning(notice)


class Reporter:
    """Reports each iteration in the log, in TensorBoard and, with `--detailed_logs`, in arrays.

    TensorBoard's histograms take milliseconds. A thread computes them while the next iteration runs.
    """

    def __init__(self, args, log, first_step, fids, pid_numbers, curves=()):
        """
        Args:
            args: of `train.py`.
            log: the run's logger.
            first_step: the step from which the run starts or continues.
            fids: file ids of the training set [N].
            pid_numbers: numbers of their identities, int32 [N].
            curves: names of the objectives' means in the results of the training step.
        """
        forget_iterations_after(args.experiment_root, first_step)
        validated = forget_events_after(args.experiment_root, first_step)
        self._args = args
        self._log = log
        self._fids = fids
        self._pid_numbers = pid_numbers
        self._curves = curves
        self._board = TensorBoard(args.experiment_root, first_step)
        for entry in best_checkpoint.results(args.experiment_root):
            if entry['step'] not in validated:  # A run that was killed had noted it, and not yet written its event.
                self._write_validation(entry['step'], entry)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._board_write = self._thread.submit(lambda: None)
        self._details = DetailedLogs(args, fids) if args.detailed_logs else None
        self._watch = CollapseWatch(args.margin)
        self._seconds = []  # Durations of the iterations since the last line of the log.

    def iteration(self, step, rows, result, learning_rate, seconds):
        """Report one iteration.

        Args:
            step: 0-based.
            rows: of the batch's images in the training set, int64 [B].
            result: of the training step, a dict of NumPy arrays.
            learning_rate: float.
            seconds: duration of the iteration.
        """
        args, k = self._args, self._args.batch_k - 1
        precision = result['batch_prec_at_k']
        scalars = {'loss': result['loss'], 'batch_top1': result['batch_top1'], f'batch_prec_at_{k}': precision,
                   'active_count': result['active_count'], 'learning_rate': learning_rate, 'secs_per_iter': seconds}
        scalars |= {name: result[name] for name in self._curves}
        self._seconds.append(seconds)
        # The first line is a sign of life, and the evidence that this run has trained something.
        if step == 0 or (step + 1) % args.log_frequency == 0 or step + 1 == args.train_iterations:
            self._log.info(self._line(step, result, precision))
            self._seconds.clear()
        self._board_write.result()  # Raises an error of the last iteration's events.
        self._board_write = self._thread.submit(self._write_iteration, step, scalars, rows, result)
        if self._details:
            self._details.write(step, result['emb'], result['losses'], self._fids[rows])
        warning = self._watch.warning(result['dists'].mean(), result['loss'])
        if warning:
            self._log.warning(warning)

    def _line(self, step, result, precision):
        """Return the line of an iteration; its duration is the mean since the last line."""
        args = self._args
        seconds = sum(self._seconds) / len(self._seconds)
        eta = seconds * (args.train_iterations - step - 1)
        line = iteration_line(step + 1, result['losses'], precision, args.batch_k - 1, eta, seconds)
        return ', '.join([line, *(f'{name.replace("_", "-")}: {result[name]:.3f}' for name in self._curves)])

    def validation(self, step, result):
        """Report a validation after `step` iterations: a result of `Validation.evaluate`."""
        self._board_write.result()
        sets = result.get('sets', {})
        protocol = f'mean of {len(sets)} sets' if sets else f'embed.py {result["embed_flags"]}'
        for name, scores in sets.items():
            self._log_validation(step, f'validation of {name}', scores, f'embed.py {scores["embed_flags"]}')
        self._log_validation(step, 'validation', result, protocol)
        self._write_validation(step, result)
        self._board.flush()

    def _log_validation(self, step, subject, scores, protocol):
        self._log.log(VALIDATION, f'iter:{step:6d}, {subject} mAP: {scores["mAP"]:.2%}, top-1: {scores["top1"]:.2%} '
                                  f'({protocol})')

    def _write_validation(self, step, result):
        scalars = {}
        for suffix, entry in {'': result, **{f'/{name}': entry for name, entry in result.get('sets', {}).items()}}.items():
            scalars |= {VALIDATION_TAG + suffix: entry['mAP'], f'validation_top1{suffix}': entry['top1']}
            scalars |= {f'validation_{name}{suffix}': score for name, score in entry.get('scores', {}).items()
                        if name not in ('mAP_sklearn', 'rank-1')}  # Written above, by the names of older runs.
        self._board.write(step, scalars, {})

    def _write_iteration(self, step, scalars, rows, result):
        with_histograms = step % self._args.summary_frequency == 0
        self._board.write(step + 1, scalars, self._histograms(rows, result) if with_histograms else {})

    def _histograms(self, rows, result):
        pids, dists = self._pid_numbers[rows[::self._args.frames_per_tracklet]], result['dists']
        same = pids[:, None] == pids[None]
        positive = same & ~np.eye(len(pids), dtype=bool)
        return {'loss_distribution': result['losses'], 'embedding_dists': dists,
                'embedding_pos_dists': dists[positive], 'embedding_neg_dists': dists[~same],
                'embedding_lengths': np.linalg.norm(result['emb_raw'], axis=1)}

    def flush(self):
        """Write all reports to the operating system, and detailed logs to the disk."""
        self._board_write.result()
        self._board.flush()
        if self._details:
            self._details.flush()

    def close(self):
        """Write all reports and close the files."""
        self._thread.shutdown()
        self._board.close()
        if self._details:
            self._details.close()


class CollapseWatch:
    """Detects that all embeddings become one point while the loss stays at the margin (ln 2 for the soft margin).

    Then the distances of positives and negatives are equal, and the gradient that would separate them vanishes.
    """
    steps = 100
    fraction_of_start = 0.02
    loss_tolerance = 0.02

    def __init__(self, margin):
        self.stuck_loss = {'soft': float(np.log(2)), 'none': 0.0}.get(margin, margin)
        self._start = collections.deque(maxlen=5)
        self._steps = 0
        self._warned = False

    def warning(self, mean_distance, loss):
        """Watch the mean distance within the batch and the mean loss of a step. Return a warning, once, or None."""
        if len(self._start) < self._start.maxlen:
            self._start.append(mean_distance)
            return None
        small = mean_distance < self.fraction_of_start * max(self._start)
        stuck = abs(loss - self.stuck_loss) < self.loss_tolerance * max(1.0, abs(self.stuck_loss))
        self._steps = self._steps + 1 if small and stuck else 0
        if self._warned or self._steps < self.steps:
            return None
        self._warned = True
        return (f'The embeddings have collapsed: for {self.steps} iterations all images of a batch lie in nearly one '
                f'point (mean distance {mean_distance:.2g}, at the start {max(self._start):.2g}) and the loss sits at '
                f'{self.stuck_loss:.3f}. Training rarely recovers from this. Try a lower --learning_rate, another '
                f'--margin, a larger --batch_p, or pre-trained weights (--initial_checkpoint).')

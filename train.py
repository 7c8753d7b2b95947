#!/usr/bin/env python3
"""Train an embedding with the triplet loss: flags → args.json → data → state → restore → loop."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import os
from typing import NamedTuple

from tripletreid import cluster, pictures, plugins, provenance, quiet, signals
from tripletreid.errors import InputError, exit_with, sentence_of, warn
from tripletreid.experiment import arguments, flag_checks, resumption, root, train_flags, train_log
from tripletreid.training.interruption import Interruption


def main():
    parser = train_flags.make_parser()
    args = parser.parse_args()

    # The parameters of this run come from:
    # 1. args.json, if a run is resumed; the command line only adds missing arguments.
    # 2. the command line, for a new run, whose root must be empty.
    notices = []
    if args.resume:
        args, notices = resumption.merge_with_stored(args, parser.given)
        arguments.check_stored_files(args.experiment_root, args)
        if 'image_root' not in parser.given:
            arguments.check_stored_image_roots(args.experiment_root, args)
    elif args.initial_head:
        notices = resumption.take_model(args, parser.given)
    notices += flag_checks.check(args, parser) + flag_checks.notices(args)

    # Data: the csv files, and that their images exist.
    from tripletreid.copies import warn_of_shared_images
    from tripletreid.dataset import load_sets, warn_of_lookalikes
    from tripletreid.image_root import check_files
    from tripletreid.training.validation import Validation
    train_set = load_sets(args.train_set)
    if args.frames_per_tracklet > 1 and train_set.tracklets is None:
        raise InputError(f'--frames_per_tracklet needs a third column in {train_set.path} that names the tracklets.')
    check_files(train_set, args.image_root, args.allow_outside_root)
    warn_of_lookalikes(train_set)
    if junk := int(train_set.junk.sum()):
        warn(f'{junk} images of {train_set.path} are junk (identity -1), which is trained as one identity: '
             f'remove their rows.')
    if train_set.sets:
        warn_of_shared_images(train_set, args.image_root)
    validator = Validation(args) if args.eval_frequency else None
    task = cluster.task(args.distribute)
    if task.is_chief and not args.resume:
        root.create(args.experiment_root)

    # Devices: TensorFlow has to know them before it computes anything.
    with quiet.tensorflow_import():
        from tripletreid.distribute import strategies
        from tripletreid.training import checks
    strategy = strategies.create(args.distribute, args.devices)
    signals.end_the_process()  # Otherwise SIGTERM goes to TensorFlow's coordinator of workers.
    strategies.check_batch(strategy, args.batch_p * args.batch_k)
    checks.check_margin(args.loss, args.margin)
    checks.check_metric(args.loss, args.metric)
    if args.initial_checkpoint and not args.resume:
        from tripletreid.modeling import pretrained
        train_flags.complete(args, pretrained.initial_options(args))

    if task.is_chief:
        train_in_root(args, train_set, validator, strategy, notices)
    else:
        with strategies.losing_a_worker_is_an_error(strategy):
            train(args, train_set, validator, strategy, train_log.log_of_worker(task.worker))


def train_in_root(args, train_set, validator, strategy, notices):
    """Train as the process that writes to the experiment root; a start that trains nothing is undone."""
    from tripletreid.distribute import strategies

    def take_back():
        is_unstarted = not args.resume and not root.has_trained(args.experiment_root)
        if is_unstarted:
            root.remove_unstarted_root(args.experiment_root)
        return is_unstarted

    with root.locked(args.experiment_root), signals.undone(take_back):
        if not args.resume:
            arguments.save(args)
        log = train_log.open_log(args.experiment_root)
        for notice in notices:
            log.warning(notice)
        try:
            for file in root.record_start(args.experiment_root, args, sum(csv_files(args).values(), [])):
                log.warning(consequence_of_change(args, file))
            with strategies.losing_a_worker_is_an_error(strategy):
                train(args, train_set, validator, strategy, log)
        except Exception as error:
            if take_back() or not isinstance(error, OSError):
                raise
            raise InputError(f'{sentence_of(error)} The checkpoints so far are intact: resolve the problem, then continue '
                             f'with --resume.') from error


def train(args, train_set, validator, strategy, log):
    """Train from the step that the experiment root has reached to the end of the run or to an interruption.

    Args:
        args: of the run.
        train_set: the training `Dataset`.
        validator: `Validation`, or None.
        strategy: the `tf.distribute.Strategy` that computes.
        log: logger.
    """
    import tensorflow as tf

    from tripletreid.distribute import agreement, feeding, strategies
    from tripletreid.experiment import best_checkpoint, checkpoints
    from tripletreid.input_pipeline import batches, images, sampling
    from tripletreid.modeling import model
    from tripletreid.training import checks, train_state
    from tripletreid.training.loop import Loop
    from tripletreid.training.reporter import Reporter, log_data, log_state
    task = cluster.task(args.distribute)
    if task.workers > 1:
        agreement.check_same_on_all_workers(strategy, facts_of(args))
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()

    # Data: the readable images, and their identities.
    if args.skip_broken_images:
        list_path = os.path.join(args.experiment_root, root.BROKEN_IMAGES_FILE)
        train_set = images.without_broken(train_set, args.image_root, list_path, args.resume, log.warning)
    identities = sampling.Identities(train_set, args.batch_p, args.batch_per_set)
    log_data(log, args, train_set, identities, strategies.description(strategy))
    for sentence in pictures.doubts_of_files(images.paths(train_set, args.image_root), str):
        log.warning(sentence)

    # State: network, optimizer, objectives, sampler; then the weights to start with.
    state = train_state.create(args, identities, strategy)
    if args.deterministic:
        checks.check_determinism(state.network)
    if validator:
        validator.build(model.named_variables(state.network), strategy)
    log_state(log, state)
    resumed = train_state.restore(state, args, strategy, log)
    if args.resume and task.is_chief:  # Only now is it certain that the run can continue with these arguments.
        arguments.save(args)
    first_step, end = state.step, args.train_iterations
    if first_step >= end and not (validator and validator.is_due(first_step)):
        log.info('Training has already finished (%d iterations).', end)
        return

    # Batches.
    steps = state.sampler.steps(first_step, end)
    data = feeding.data(strategy, args, lambda *part: batches.batches(train_set, identities, args, steps, *part))
    data = sampling.batches_as_drawn(state.sampler, data, first_step, end)

    def why_unreadable(step, error):
        rows = sampling.rows_at(identities, args, state.sampler.steps(step, step + 1))
        return images.broken_image(images.paths(train_set.take(rows), args.image_root), error)

    # From here on a signal no longer ends the process: the run finishes its iteration and saves a checkpoint.
    interruption = Interruption()
    if not resumed:
        values = state.values()
        if task.is_chief:
            checkpoints.save(args.experiment_root, 0, values)

    # The loop.
    reporter = None
    if task.is_chief:
        best_checkpoint.forget_after(args.experiment_root, first_step)
        curves = [objective.curve for objective in state.objectives.values()]
        reporter = Reporter(args, log, first_step, train_set.fids, identities.pid_numbers, curves)
    tf.config.experimental.enable_tensor_float_32_execution(args.tf32)
    log.info('Starting training from iteration %d.', first_step)
    loop = Loop(args, state, strategy, reporter, validator, interruption, train_set.fids, log)
    loop.run(make_train_step(args, state, strategy), data, why_unreadable)
    if reporter:
        reporter.close()


def make_train_step(args, state, strategy):
    """Compile `train_step` for all replicas.

    Args:
        args: of the run.
        state: `TrainState`, which every call changes.
        strategy: the `tf.distribute.Strategy` of the replicas.

    Returns: `tf.function` (batch, `Schedule`) -> the result of `train_step`.
    """
    import tensorflow as tf

    from tripletreid.distribute import collectives
    from tripletreid.training.forward import forward_functions
    metric_loss = plugins.load('losses', args.loss).loss
    forward = forward_functions(args, state)

    @tf.function(autograph=False, jit_compile=args.jit_compile)
    def step_of_all_replicas(batch, schedule):
        result = collectives.run(strategy, lambda part: train_step(args, state, forward, metric_loss, part, schedule), batch)
        state.global_step.assign_add(1)
        return result

    return step_of_all_replicas


class Outputs(NamedTuple):
    """The outputs of the network for the images of one replica, as the terms of the loss read them.

    endpoints: {name: tensor [B·S, …]} of the network, S frames per tracklet.
    image_pids: numbers of the identities of the images, int32 [B·S].
    embs: embeddings that the metric loss compares, [B, D] float32.
    pids: numbers of their identities, int32 [B].
    """
    endpoints: dict
    image_pids: object
    embs: object
    pids: object


def train_step(args, state, forward, metric_loss, batch, schedule):
    """Compute one step on each replica's own part of a batch: forward, distances, losses, gradients, update.

    Args:
        args: of the run.
        state: `TrainState`.
        forward: result of `forward.forward_functions`.
        metric_loss: the function `loss` of a file in losses/.
        batch: one of `batches.batches`.
        schedule: `Schedule` of the step.

    Returns: dict of tensors about the whole batch, equal on all replicas.
    """
    import tensorflow as tf

    from loss import cdist, cdist_to_memory, mean_over_frames, monitor
    from tripletreid.distribute import collectives
    from tripletreid.fan_out import fan_out
    from tripletreid.input_pipeline.sampling import LOSS, STOCHASTIC_DEPTH, stream_seed
    from tripletreid.modeling import stochastic_depth
    from tripletreid.training.optimizer import clip
    frames, batch_size = args.frames_per_tracklet, args.batch_p * args.batch_k * args.frames_per_tracklet
    own_slots = collectives.own_part(collectives.dealt(tf.range(batch_size), frames))
    draws = stochastic_depth.Step(stream_seed(args.seed, STOCHASTIC_DEPTH, state.global_step), own_slots, batch_size)
    trained = state.trained(schedule.body_is_frozen)
    with draws, tf.GradientTape() as tape:
        endpoints = forward[schedule.body_is_frozen](batch['images'])
        embs = mean_over_frames(endpoints.get('metric_emb', endpoints['emb']), frames)
        batch_pids = batch['pids'][::frames]
        pids = collectives.dealt(batch_pids)
        own_pids, image_pids = (collectives.own_part(each) for each in (pids, collectives.dealt(batch['pids'], frames)))

        # The metric loss, in two steps: distances to the batch (and to a memory of earlier ones), then losses per anchor.
        anchors, others, anchors_of_memory, *objective_embs = fan_out(embs, 3 + len(state.objectives))
        dists = compared = cdist(anchors, collectives.own_first(collectives.gather(others)), args.metric)
        compared_pids = collectives.own_first(pids)
        if schedule.memory_is_used:
            memory_embs, memory_pids = state.memory.content()
            compared = tf.concat([dists, cdist_to_memory(anchors_of_memory, memory_embs, args.metric)], axis=1)
            compared_pids = tf.concat([compared_pids, memory_pids], axis=0)
        losses = metric_loss(compared, own_pids, compared_pids, args.margin,
                             stream_seed(args.seed, LOSS, state.global_step))

        # The loss is the weighted sum of the means of its terms.
        terms = {'metric': losses}
        for (name, objective), own_embs in zip(state.objectives.items(), objective_embs):
            terms[name] = objective.losses(Outputs(endpoints, image_pids, own_embs, own_pids))
        means = {name: collectives.part_of_mean(term) for name, term in terms.items()}
        loss = sum(getattr(args, f'{name}_weight') * mean for name, mean in means.items())
        scaled_loss = state.loss_scale.scaled(loss)

    # Gradients of the whole batch. The second run of recomputed layers draws the same random numbers. A variable without
    # influence on the loss, such as the head's below a classifier of the features, gets zeros.
    with draws:
        gradients = tape.gradient(scaled_loss, [variable.value for variable in trained.values()],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = state.loss_scale.unscaled(collectives.total(gradients))
    gradient_norm = tf.linalg.global_norm(gradients)
    clipped = dict(zip(trained, clip(gradients, args.gradient_clip)))

    # The whole batch, in its own order.
    dists = collectives.gathered(collectives.columns_of_batch(dists))
    losses, embs = collectives.gathered(losses), collectives.gathered(embs)
    loss, *means_of_objectives = collectives.total([loss, *(means[name] for name in state.objectives)])

    collectives.agree(state.statistics(schedule.body_is_frozen))
    loss_scale = state.apply_gradients(clipped, gradient_norm, schedule, embs, batch_pids)
    curves = {objective.curve: mean for objective, mean in zip(state.objectives.values(), means_of_objectives)}
    return {'loss': loss, **curves, 'losses': losses, 'dists': dists, 'emb': embs,
            'emb_raw': collectives.gathered(endpoints['emb_raw'], frames), 'rows': batch['rows'],
            'gradient_norm': gradient_norm, 'loss_scale': loss_scale,
            **monitor(dists, batch_pids, batch_pids, losses, args.batch_k - 1)}


def csv_files(args):
    """Return the csv files that a run reads, {name of the argument: list of paths}."""
    return {'train_set': arguments.as_list(args.train_set), 'eval_query': args.eval_query or [],
            'eval_gallery': args.eval_gallery or []}


def consequence_of_change(args, file):
    """Return a sentence about one of the `csv_files` whose content has changed since the last start of the run."""
    consequences = []
    if file in csv_files(args)['train_set']:
        consequences.append('the batches differ from the batches of an uninterrupted run')
    if file in [*csv_files(args)['eval_query'], *csv_files(args)['eval_gallery']]:
        consequences.append('later validations cannot be compared with earlier ones, and the best of all these checkpoints '
                            'is unknown')
    return f'{file} changed since the last start: {"; ".join(consequences)}.'


def facts_of(args):
    """Return the facts that have to be equal on all workers, {name: text}: arguments and hashes of the csv files."""
    machine_args = (*train_flags.LAUNCH_ARGS, *train_flags.MACHINE_ARGS, 'allow_outside_root')
    facts = {name: repr(value) for name, value in vars(args).items() if name not in machine_args}
    return facts | {name: ' '.join(map(provenance.file_hash, files)) for name, files in csv_files(args).items() if files}


if __name__ == '__main__':
    exit_with(main, lower="--batch_p, --batch_k or the net's input size")

#!/usr/bin/env python3
"""Train an embedding with the triplet loss: flags → args.json → data → model → loss → optimizer → restore → loop."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import os

from tripletreid import cluster, pictures, plugins, provenance, quiet, signals
from tripletreid.errors import InputError, exit_with, sentence_of
from tripletreid.experiment import arguments, flag_checks, resumption, root, train_flags, train_log
from tripletreid.training.interruption import Interruption

USED_ENDPOINTS = ('emb', 'emb_raw', 'metric_emb', 'logits')  # In `replica_step`.


def main():
    parser = train_flags.make_parser()
    args = parser.parse_args()

    # Where this run's parameters come from:
    # 1. a run to be resumed: its args.json; the command line only adds what that lacks.
    # 2. a new run: the command line, and its root must be empty.
    notices = []
    if args.resume:
        args, notices = resumption.merge_with_stored(args, parser.given)
        arguments.check_stored_files(args.experiment_root, args)
        if 'image_root' not in parser.given:
            arguments.check_stored_image_roots(args.experiment_root, args)
    notices += flag_checks.check(args, parser) + flag_checks.notices(args)
    from tripletreid.copies import warn_of_shared_images
    from tripletreid.dataset import load_sets, warn_of_lookalikes
    from tripletreid.image_root import check_files
    from tripletreid.training.validation import Validation
    train_set = load_sets(args.train_set)
    if args.frames_per_tracklet > 1 and train_set.tracklets is None:
        raise InputError(f'--frames_per_tracklet needs a third column in {train_set.path} that names the tracklets.')
    check_files(train_set, args.image_root, args.allow_outside_root)
    warn_of_lookalikes(train_set)
    if train_set.sets:
        warn_of_shared_images(train_set, args.image_root)
    validator = Validation(args) if args.eval_frequency else None
    task = cluster.task(args.distribute)
    if task.is_chief and not args.resume:
        root.create(args.experiment_root)

    # What computes: TensorFlow has to know of several devices before it computes anything.
    with quiet.tensorflow_import():
        from loss import check_margin, check_metric
        from tripletreid.distribute import strategies
    strategy = strategies.create(args.distribute, args.devices)
    signals.end_the_process()  # SIGTERM goes to TensorFlow's coordinator of workers otherwise.
    strategies.check_batch(strategy, args.batch_p * args.batch_k)
    check_margin(args.loss, args.margin)
    check_metric(args.loss, args.metric)
    if args.initial_checkpoint and not args.resume:
        from tripletreid.modeling import pretrained
        train_flags.complete(args, pretrained.published_options(args.model_name, args.initial_checkpoint))
    if not task.is_chief:
        with strategies.losing_a_worker_is_an_error(strategy):
            train(args, train_set, validator, strategy, train_log.log_of_worker(task.worker))
        return

    def has_trained_nothing():  # So that it can be started again, with what was wrong put right.
        return not args.resume and not root.has_trained(args.experiment_root)

    def take_back():
        if has_trained_nothing():
            root.take_back_start(args.experiment_root)

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
            if has_trained_nothing():
                root.take_back_start(args.experiment_root)
                raise
            if isinstance(error, OSError):
                raise InputError(f'{sentence_of(error)} The checkpoints so far are intact: when that is put right, go on '
                                 f'with --resume.') from error
            raise


def train(args, train_set, validator, strategy, log):
    """Train from where the experiment root says that the run stands to its end, or to an interruption.

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
    from tripletreid.modeling import pretrained
    from tripletreid.training import optimizer
    from tripletreid.training.loop import Loop
    from tripletreid.training.reporter import Reporter
    from tripletreid.training.train_state import TrainState
    task = cluster.task(args.distribute)
    is_chief = task.is_chief
    if task.workers > 1:
        agreement.check_same_on_all_workers(strategy, facts_of(args))
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()

    # Data: which images can be read, and who is there. The batches are made when it is known at which step they start.
    if args.skip_broken_images:
        list_path = os.path.join(args.experiment_root, root.BROKEN_IMAGES_FILE)
        train_set = images.without_broken(train_set, args.image_root, list_path, args.resume, log.warning)
    identities = sampling.Identities(train_set, args.batch_p, args.batch_per_set)
    log.info('Training on %d images of %d identities, on %s.', len(train_set), len(identities.names),
             strategies.description(strategy))
    for sentence in sampling.shares_of_sets(identities, train_set, args.batch_p):
        log.info(sentence)
    if args.crop_augment:
        log.info('Images are loaded at %dx%d, for random crops of %dx%d.', args.pre_crop_height, args.pre_crop_width,
                 args.net_input_height, args.net_input_width)
    for sentence in pictures.doubts_of_files(images.paths(train_set, args.image_root), str):
        log.warning(sentence)
    few_positives = sampling.check_positives(identities, train_set, args)
    if few_positives:
        log.warning(few_positives)

    # Model, optimizer, and the weights to start with.
    state = TrainState(args, len(identities.names), strategy)
    if args.deterministic:
        check_determinism(state.network)
    if validator:
        validator.build(state.names, strategy)
    for factor, names in optimizer.by_factor(state.rate_factors).items():
        log.info('The learning rate times %.3g is that of %s.', factor, pretrained.listed(names))
    resumed = state.restore(args, strategy, log)
    if args.resume and is_chief:  # Not before it is known that the run can go on with what it was given now.
        arguments.save(args)
    first_step = state.step
    if first_step >= args.train_iterations and not (validator and validator.is_due(first_step)):
        log.info('This run has had all of its %d iterations; nothing is left to do.', args.train_iterations)
        return
    hard, end = state.hard_identities, args.train_iterations
    if hard and len(identities.names) < 2 * args.batch_p:
        log.warning('--sampler hard_identity has little to choose from: %d identities, of which each batch takes %d.',
                    len(identities.names), args.batch_p)
    steps = hard.steps(end) if hard else sampling.random_identities(identities, args, first_step, end)
    data = feeding.data(strategy, args, lambda *parts: batches.batches(train_set, identities, args, steps, *parts))
    data = hard.batches(data, first_step, end, strategy, identities.parts) if hard else iter(data)

    # A run that has started is not just ended by a signal: from here on it finishes its iteration and saves.
    interruption = Interruption()
    if not resumed:
        values = state.values()
        if is_chief:
            checkpoints.save(args.experiment_root, 0, values)

    # The loop.
    if is_chief:
        best_checkpoint.forget_after(args.experiment_root, first_step)
    reporter = Reporter(args, log, first_step, train_set.fids, identities.pid_numbers) if is_chief else None

    def why_unreadable(step, error):
        rows = sampling.rows_at(identities, args, step, hard and hard.at(step))
        return images.broken_image(images.paths(train_set.take(rows), args.image_root), error)

    tf.config.experimental.enable_tensor_float_32_execution(args.tf32)
    log.info('Starting training from iteration %d.', first_step)
    loop = Loop(args, state, strategy, reporter, validator, interruption, train_set.fids, log)
    loop.run(make_train_step(args, state, strategy), data, why_unreadable)
    if is_chief:
        reporter.close()


def csv_files(args):
    """The csv files that a run reads, {name of the argument: list of paths}."""
    return {'train_set': arguments.as_list(args.train_set), 'eval_query': args.eval_query or [],
            'eval_gallery': args.eval_gallery or []}


def consequence_of_change(args, file):
    """What to say of one of the `csv_files` that is not what it was when the run was started last."""
    consequences = []
    if file in csv_files(args)['train_set']:
        consequences.append('the batches will not be those that it would have had')
    if file in [*csv_files(args)['eval_query'], *csv_files(args)['eval_gallery']]:
        consequences.append('validations from here on cannot be compared with those before, and which of all these '
                            'checkpoints is the best is not known')
    return f'{file} is not what it was when this run was started last: {"; ".join(consequences)}.'


def facts_of(args):
    """What has to be the same on all workers, {name: text}: the arguments that matter, and the content of csv files."""
    of_machine = (*train_flags.LAUNCH_ARGS, *train_flags.MACHINE_ARGS, 'allow_outside_root')
    facts = {name: repr(value) for name, value in vars(args).items() if name not in of_machine}
    return facts | {name: ' '.join(map(provenance.file_hash, files)) for name, files in csv_files(args).items() if files}


def check_determinism(network):
    """Raises InputError when a net on a GPU has layers without a deterministic gradient there."""
    import keras
    import tensorflow as tf
    depthwise = [layer.name for layer in network._flatten_layers() if isinstance(layer, keras.layers.DepthwiseConv2D)]
    if depthwise and tf.config.get_visible_devices('GPU'):
        raise InputError(f'--deterministic: on a GPU depthwise convolutions have no deterministic gradient, and '
                         f'this net has some, such as {depthwise[0]}. Leave the flag out, or take another --model_name.')


def make_train_step(args, state, strategy):
    """The training step as TensorFlow runs it.

    Args:
        args: of the run.
        state: `TrainState`, which every call changes.
        strategy: the `tf.distribute.Strategy` of the replicas.

    Returns: function of what `replica_step` takes behind its first four arguments, for all replicas together.
    """
    import tensorflow as tf

    from tripletreid.distribute import collectives
    from tripletreid.modeling import recompute
    losses_of = plugins.load('losses', args.loss).loss
    forward = recompute.recomputing(state.network, USED_ENDPOINTS) if args.recompute else state.network

    @tf.function(autograph=False, jit_compile=args.jit_compile)
    def train_step(*arguments):
        result = collectives.run(strategy, lambda *given: replica_step(args, state, forward, losses_of, *given),
                                *arguments)
        state.global_step.assign_add(1)
        return result

    return train_step


def replica_step(args, state, forward, losses_of, batch, learning_rate, beta1, body_is_frozen,
                 memory_is_used=False):
    """What each replica does with its own part of a batch: forward, distances, losses, gradients, update.

    Args:
        args: of the run.
        state: `TrainState`.
        forward: its network, or what computes the same with --recompute.
        losses_of: the function `loss` of a file in losses/.
        batch: one of `batches.batches`.
        learning_rate, beta1: float32 scalars, of the optimizer.
        body_is_frozen, memory_is_used: Python bools: this is traced once for each of their values.

    Returns: dict of tensors about the whole batch, the same on each replica.
    """
    import tensorflow as tf

    from loss import cdist, cdist_to_memory, classifier_logits, cross_entropy, mean_over_frames, monitor
    from tripletreid.distribute import collectives
    from tripletreid.input_pipeline.sampling import LOSS, STOCHASTIC_DEPTH, stream_seed
    from tripletreid.modeling import stochastic_depth
    from tripletreid.training import optimizer
    network = state.network
    network.body.trainable = not body_is_frozen  # It stops the body's batch norm as well.
    trained = state.trainable_head if body_is_frozen else state.trainable
    batch_size = args.batch_p * args.batch_k * args.frames_per_tracklet
    own_slots = collectives.own_part(collectives.dealt(tf.range(batch_size), args.frames_per_tracklet))
    draws = stochastic_depth.Step(stream_seed(args.seed, STOCHASTIC_DEPTH, state.global_step), own_slots, batch_size)
    with draws, tf.GradientTape() as tape:
        # Of a frozen body nothing is kept anyway.
        endpoints = (network if body_is_frozen else forward)(batch['images'], training=True)
        emb = mean_over_frames(endpoints.get('metric_emb', endpoints['emb']), args.frames_per_tracklet)
        dists = cdist(emb, collectives.own_first(collectives.gather(emb)), args.metric)
        batch_pids = batch['pids'][::args.frames_per_tracklet]
        pids = collectives.dealt(batch_pids)
        compared, compared_pids = dists, collectives.own_first(pids)
        if memory_is_used:
            memory_embs, memory_pids = state.memory.content()
            compared = tf.concat([dists, cdist_to_memory(emb, memory_embs, args.metric)], axis=1)
            compared_pids = tf.concat([compared_pids, memory_pids], axis=0)
        losses = losses_of(compared, collectives.own_part(pids), compared_pids, args.margin,
                           stream_seed(args.seed, LOSS, state.global_step))
        loss, xent, of_centers = args.metric_weight * collectives.part_of_mean(losses), tf.zeros([]), tf.zeros([])
        if args.xent_weight:
            pids_of_images = collectives.dealt(batch['pids'], args.frames_per_tracklet)
            own_pids = collectives.own_part(pids_of_images)
            logits = classifier_logits(endpoints['logits'], own_pids, args.classifier, args.classifier_scale,
                                       args.classifier_margin)
            of_images = cross_entropy(logits, own_pids, args.label_smoothing)
            xent = collectives.part_of_mean(of_images)
            loss += args.xent_weight * xent
        if state.centers:
            of_centers = collectives.part_of_mean(state.centers.losses(emb, collectives.own_part(pids)))
            loss += args.center_weight * of_centers
        scaled_loss = state.loss_scale.scaled(loss)
    # A variable that the loss does not depend on, as the head's in front of a classifier may be, gets zeros.
    with draws:  # What is computed once more for the gradients draws the same.
        gradients = tape.gradient(scaled_loss, [variable.value for variable in trained.values()],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradients = state.loss_scale.unscaled(collectives.total(gradients))
    gradient_norm = tf.linalg.global_norm(gradients)
    clipped = dict(zip(trained, optimizer.clip(gradients, args.gradient_clip)))

    # All of the batch, in its own order.
    dists = collectives.gathered(collectives.columns_of_batch(dists))
    losses, emb = collectives.gathered(losses), collectives.gathered(emb)
    loss, xent, of_centers = collectives.total([loss, xent, of_centers])

    def update():
        state.update(clipped, learning_rate, beta1)
        if state.centers:
            state.centers.follow(emb, batch_pids)

    loss_scale = state.loss_scale.apply(gradient_norm, update)
    if state.memory:
        state.memory.remember(emb, batch_pids)
    if state.hard_identities:
        state.hard_identities.follow(emb, batch_pids)
    return {'loss': loss, 'cross_entropy': xent, 'center_loss': of_centers, 'losses': losses, 'dists': dists, 'emb': emb,
            'emb_raw': collectives.gathered(endpoints['emb_raw'], args.frames_per_tracklet), 'rows': batch['rows'],
            'gradient_norm': gradient_norm, 'loss_scale': loss_scale,
            **monitor(dists, batch_pids, batch_pids, losses, args.batch_k - 1)}


if __name__ == '__main__':
    exit_with(main, lower="--batch_p, --batch_k or the net's input size")

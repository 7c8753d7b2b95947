#!/usr/bin/env python3
"""Train an embedding with the triplet loss: flags → args.json → data → model → loss → optimizer → restore → loop."""
import os
import time

import arguments
import cluster
import experiment
import plugins
import quiet
from errors import InputError, exit_with, sentence_of


def main():
    parser = arguments.make_parser()
    args = parser.parse_args()

    # Where this run's parameters come from:
    # 1. a run to be resumed: its args.json; the command line only adds what that lacks.
    # 2. a new run: the command line, and its root must be empty.
    notices = []
    if args.resume:
        args, notices = arguments.merge_with_stored(args, arguments.given_on_command_line(parser))
    arguments.check(args, parser)
    import validation
    from dataset import check_files, load_dataset
    train_set = load_dataset(args.train_set)
    if args.frames_per_tracklet > 1 and train_set.tracklets is None:
        raise InputError(f'--frames_per_tracklet needs a third column in {args.train_set} that names the tracklets.')
    check_files(train_set, args.image_root, args.allow_outside_root)
    validator = validation.Validation(args) if args.eval_frequency else None
    task = cluster.task(args.distribute)
    if task.is_chief and not args.resume:
        experiment.create(args.experiment_root)

    # What computes: TensorFlow has to know of several devices before it computes anything.
    interruption = experiment.Interruption()
    with quiet.tensorflow_import():
        import checkpoints
        import distribute
        from loss import check_margin
    strategy = distribute.strategy(args.distribute, args.devices)
    interruption.take_signals()  # SIGTERM goes to TensorFlow's coordinator of workers otherwise.
    distribute.check_batch(strategy, args.batch_p * args.batch_k)
    check_margin(args.loss, args.margin)
    if not task.is_chief:
        with distribute.losing_a_worker_is_an_error():
            train(args, train_set, validator, strategy, interruption, experiment.log_of_worker(task.worker))
        return
    with experiment.locked(args.experiment_root):
        arguments.save(args)
        log = experiment.open_log(args.experiment_root)
        for notice in notices:
            log.warning(notice)
        try:
            if experiment.record_start(args.experiment_root, args, [args.train_set]):
                log.warning(f'{args.train_set} is not what it was when this run was started last: the batches will not '
                            f'be those that it would have had.')
            with distribute.losing_a_worker_is_an_error():
                train(args, train_set, validator, strategy, interruption, log)
        except OSError as error:
            raise InputError(f'{sentence_of(error)} The checkpoints so far are intact: when that is put right, go on '
                             f'with --resume.') from error
        except Exception:
            if not args.resume and not checkpoints.were_written(args.experiment_root):
                experiment.take_back_start(args.experiment_root)
            raise


def train(args, train_set, validator, strategy, interruption, log):
    import keras
    import numpy as np
    import tensorflow as tf

    import batches
    import checkpoints
    import distribute
    import images
    import model
    import optimizer
    import validation
    from loss import cdist, cross_entropy, mean_over_frames, monitor
    from progress import Reporter
    root, is_chief = args.experiment_root, cluster.task(args.distribute).is_chief

    keras.utils.set_random_seed(args.seed)
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()

    # Data: which images can be read, and who is there. The batches are made when it is known at which step they start.
    if args.skip_broken_images:
        list_path = os.path.join(root, experiment.BROKEN_IMAGES_FILE)
        train_set = images.without_broken(train_set, args.image_root, list_path, args.resume, log.warning)
    identities = batches.Identities(train_set, args.batch_p)
    log.info('Training on %d images of %d identities, on %s.', len(train_set), len(identities.names),
             distribute.description(strategy))

    # Model, loss, optimizer.
    model.set_precision(args.mixed_precision)
    with strategy.scope():
        network = model.build_for(args)
        if args.xent_weight:
            network = model.with_classifier(network, len(identities.names))
    losses_of = plugins.load('losses', args.loss).loss
    variables = model.named_variables(network)
    if validator:
        validator.build(variables)
    trainable = {name: variable for name, variable in variables.items() if variable.trainable}
    of_body = model.named_variables(network.body)
    of_head = {name: variable for name, variable in trainable.items() if name not in of_body}
    late = [name for name in trainable if name in of_body] if args.freeze_body_iterations else []
    with strategy.scope():
        adam = optimizer.Adam(trainable, args.weight_decay, late)
        loss_scale = optimizer.LossScale(args.mixed_precision)
    global_step = tf.Variable(0, dtype=tf.int32, trainable=False)
    state = {**variables, **adam.variables, **loss_scale.variables, 'global_step': global_step}

    # What the weights are at the start:
    # 1. those of the newest whole checkpoint of the run to be resumed, unless it ended before it had written any.
    # 2. pre-trained ones in the body, fresh ones in the head.
    # 3. fresh ones.
    resumed = distribute.any_worker(strategy, args.resume and checkpoints.were_written(root))
    if resumed:
        restored = checkpoints.load_newest(root, state, log)
        log.info('Resuming from %s.', restored)
    elif args.initial_checkpoint:
        model.load_body(network, args.initial_checkpoint)
        log.info('Initialised the body from %s.', args.initial_checkpoint)
    first_step = int(global_step.numpy())
    validation_is_due = validator and validator.is_due(first_step)
    if first_step >= args.train_iterations and not validation_is_due:
        log.info('This run has had all of its %d iterations; nothing is left to do.', args.train_iterations)
        return
    if not resumed:
        values = distribute.values(state)
        if is_chief:
            checkpoints.save(root, 0, values)

    # With several devices, each of them runs this on its own part of the batch.
    def replica_step(batch, learning_rate, beta1, body_is_frozen):
        # This runs once for each value of the Python bool, while it is traced. It stops the body's batch norm as well.
        network.body.trainable = not body_is_frozen
        trained = of_head if body_is_frozen else trainable
        with tf.GradientTape() as tape:
            endpoints = network(batch['images'], training=True)
            emb = mean_over_frames(endpoints.get('metric_emb', endpoints['emb']), args.frames_per_tracklet)
            batch_pids = batch['pids'][::args.frames_per_tracklet]
            dists = cdist(emb, distribute.own_first(distribute.gather(emb)), args.metric)
            seed = batches.stream_seed(args.seed, batches.LOSS, global_step)
            losses = losses_of(dists, distribute.own_part(batch_pids), distribute.own_first(batch_pids), args.margin,
                               seed)
            loss, xent = args.metric_weight * distribute.share_of_mean(losses), tf.zeros([])
            if args.xent_weight:
                of_images = cross_entropy(endpoints['logits'], distribute.own_part(batch['pids']), args.label_smoothing)
                xent = distribute.share_of_mean(of_images)
                loss += args.xent_weight * xent
            scaled_loss = loss_scale.scaled(loss)
        # A variable that the loss does not depend on, as the head's in front of a classifier may be, gets zeros.
        gradients = tape.gradient(scaled_loss, [variable.value for variable in trained.values()],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = loss_scale.unscaled(distribute.total(gradients))
        gradient_norm = tf.linalg.global_norm(gradients)
        clipped = dict(zip(trained, optimizer.clip(gradients, args.gradient_clip)))
        loss_scale.apply(gradient_norm, lambda: adam.apply(clipped, learning_rate, beta1))

        of_batch = {'losses': losses, 'dists': distribute.batch_order(dists), 'emb': emb,
                    'emb_raw': endpoints['emb_raw']}
        of_batch = {name: distribute.gather(part) for name, part in of_batch.items()}
        return {**of_batch, 'rows': batch['rows'], 'gradient_norm': gradient_norm,
                **dict(zip(('loss', 'cross_entropy'), distribute.total([loss, xent]))),
                **monitor(of_batch['dists'], batch_pids, batch_pids, of_batch['losses'], args.batch_k - 1)}

    @tf.function(autograph=False, jit_compile=args.jit_compile)
    def train_step(*arguments):
        result = distribute.run(strategy, replica_step, *arguments)
        global_step.assign_add(1)
        return result

    # The loop. A checkpoint is never written after a number that is not finite, and every validation has its own.
    if is_chief:
        validation.forget_after(root, first_step)
    reporter = Reporter(args, log, first_step, train_set.fids, identities.pid_numbers) if is_chief else None
    data = distribute.data(strategy, args, lambda slots, part_size: batches.batches(
        train_set, identities, args, first_step, args.train_iterations, slots, part_size))
    log.info('Starting training from iteration %d.', first_step)
    saved_step, broken_image = first_step, None

    def save_checkpoint():
        step, values = int(global_step.numpy()), distribute.values(state)
        if is_chief:
            reporter.flush()
            checkpoints.save(root, step, values, args.keep_checkpoints, first_step)
            log.info('Saved %s.', checkpoints.prefix(root, step))
        return step

    def validate():
        step = int(global_step.numpy())
        result = validator.evaluate(distribute.values(state), interruption)
        if result and is_chief:
            validation.note(root, step, result)
            reporter.validation(step, result)

    if validation_is_due:  # The run was interrupted just then.
        validate()
    for step in range(first_step, args.train_iterations):
        started = time.monotonic()
        try:
            batch = next(data)
        except tf.errors.OpError as error:
            rows = batches.rows_at(identities, args, step)
            broken_image = images.broken_image(images.paths(train_set.take(rows), args.image_root), error)
        if distribute.any_worker(strategy, interruption.requested or broken_image):
            if not broken_image:
                log.info('Interrupted by %s after %d iterations.', interruption.requested or 'another worker', step)
            break
        learning_rate = optimizer.learning_rate(step, args)
        result = train_step(batch, tf.constant(learning_rate, tf.float32),
                            tf.constant(optimizer.beta1(step, args), tf.float32), step < args.freeze_body_iterations)
        result = {name: value.numpy() for name, value in result.items()}
        rows = result['rows']
        must_be_finite = ['loss', 'emb', 'gradient_norm']
        if loss_scale.left_out(result['gradient_norm']):
            log.warning('Iteration %d is left out: its gradients are beyond float16. The loss scale is %g from now on.',
                        step + 1, loss_scale.scale.numpy())
            must_be_finite.remove('gradient_norm')
        if not all(np.isfinite(result[name]).all() for name in must_be_finite):
            raise InputError(
                f'Iteration {step + 1} gave a loss of {result["loss"]} and a gradient of norm '
                f'{result["gradient_norm"]} on {", ".join(train_set.fids[rows])}. The run stops here; the last good '
                f'checkpoint is {checkpoints.prefix(root, saved_step)}. Try a lower --learning_rate.')
        if is_chief:
            reporter.iteration(step, rows, result, learning_rate, time.monotonic() - started)
        validation_is_due = validator and validator.is_due(step + 1)
        if validation_is_due or args.checkpoint_frequency and (step + 1) % args.checkpoint_frequency == 0:
            saved_step = save_checkpoint()
        if validation_is_due:
            validate()

    if int(global_step.numpy()) != saved_step:
        save_checkpoint()
    if is_chief:
        reporter.close()
    if broken_image:
        raise broken_image


if __name__ == '__main__':
    exit_with(main)

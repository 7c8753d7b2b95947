#!/usr/bin/env python3
"""Train an embedding with the triplet loss: flags → args.json → data → model → loss → optimizer → restore → loop."""
import os
import time

import arguments
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
    from dataset import check_files, load_dataset
    train_set = load_dataset(args.train_set)
    if args.frames_per_tracklet > 1 and train_set.tracklets is None:
        raise InputError(f'--frames_per_tracklet needs a third column in {args.train_set} that names the tracklets.')
    check_files(train_set, args.image_root, args.allow_outside_root)
    if not args.resume:
        experiment.create(args.experiment_root)

    interruption = experiment.Interruption()
    with experiment.locked(args.experiment_root):
        arguments.save(args)
        log = experiment.open_log(args.experiment_root)
        for notice in notices:
            log.warning(notice)
        try:
            experiment.record_start(args.experiment_root, args, [args.train_set])
            train(args, train_set, interruption, log)
        except OSError as error:
            raise InputError(f'{sentence_of(error)} The checkpoints so far are intact: when that is put right, go on '
                             f'with --resume.') from error


def train(args, train_set, interruption, log):
    with quiet.tensorflow_import():
        import tensorflow as tf
    import keras
    import numpy as np

    import batches
    import checkpoints
    import images
    import model
    import optimizer
    from loss import cdist, cross_entropy, mean_over_frames, monitor
    from progress import Reporter
    root = args.experiment_root

    keras.utils.set_random_seed(args.seed)
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()

    # Data: which images can be read, and who is there. The batches are made when it is known at which step they start.
    if args.skip_broken_images:
        list_path = os.path.join(root, 'broken_images.csv')
        train_set = images.without_broken(train_set, args.image_root, list_path, args.resume, log.warning)
    identities = batches.Identities(train_set, args.batch_p)
    devices = tf.config.list_physical_devices('GPU') or tf.config.list_physical_devices('CPU')
    log.info('Training on %d images of %d identities, on %s.', len(train_set), len(identities.names),
             ' and '.join(device.name.removeprefix('/physical_device:') for device in devices))

    # Model, loss, optimizer.
    input_shape = (args.net_input_height, args.net_input_width, 3)
    network = model.build(args.model_name, args.head_name, args.embedding_dim, input_shape,
                          **arguments.net_options(args))
    if args.xent_weight:
        network = model.with_classifier(network, len(identities.names))
    losses_of = plugins.load('losses', args.loss).loss
    variables = model.named_variables(network)
    trainable = {name: variable for name, variable in variables.items() if variable.trainable}
    of_body = model.named_variables(network.body)
    of_head = {name: variable for name, variable in trainable.items() if name not in of_body}
    adam = optimizer.Adam(trainable, args.weight_decay)
    global_step = tf.Variable(0, dtype=tf.int32, trainable=False)
    state = {**variables, **adam.variables, 'global_step': global_step}

    # What the weights are at the start:
    # 1. those of the newest whole checkpoint of the run to be resumed, unless it ended before it had written any.
    # 2. pre-trained ones in the body, fresh ones in the head.
    # 3. fresh ones.
    resumed = args.resume and checkpoints.were_written(root)
    if resumed:
        restored = checkpoints.load_newest(root, state, log)
        log.info('Resuming from %s.', restored)
    elif args.initial_checkpoint:
        model.load_body(network, args.initial_checkpoint)
        log.info('Initialised the body from %s.', args.initial_checkpoint)
    first_step = int(global_step.numpy())
    if first_step >= args.train_iterations:
        log.info('This run has had all of its %d iterations; nothing is left to do.', args.train_iterations)
        return
    if not resumed:
        checkpoints.save(root, 0, state)

    @tf.function
    def train_step(batch_images, pids, learning_rate, beta1, body_is_frozen):
        # This runs once for each value of the Python bool, while it is traced. It stops the body's batch norm as well.
        network.body.trainable = not body_is_frozen
        trained = of_head if body_is_frozen else trainable
        with tf.GradientTape() as tape:
            endpoints = network(batch_images, training=True)
            emb = mean_over_frames(endpoints.get('metric_emb', endpoints['emb']), args.frames_per_tracklet)
            item_pids = pids[::args.frames_per_tracklet]
            dists = cdist(emb, emb, args.metric)
            seed = batches.stream_seed(args.seed, batches.LOSS, global_step)
            losses = losses_of(dists, item_pids, item_pids, args.margin, seed)
            loss = args.metric_weight * tf.reduce_mean(losses)
            if args.xent_weight:
                xent = tf.reduce_mean(cross_entropy(endpoints['logits'], pids, args.label_smoothing))
                loss += args.xent_weight * xent
        # A variable that the loss does not depend on, as the head's in front of a classifier may be, gets zeros.
        gradients = tape.gradient(loss, [variable.value for variable in trained.values()],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradient_norm = tf.linalg.global_norm(gradients)
        adam.apply(dict(zip(trained, optimizer.clip(gradients, args.gradient_clip))), learning_rate, beta1)
        global_step.assign_add(1)
        return {'loss': loss, 'losses': losses, 'dists': dists, 'emb': emb,
                'emb_raw': endpoints['emb_raw'], 'gradient_norm': gradient_norm,
                **monitor(dists, item_pids, item_pids, losses, args.batch_k - 1)}

    # The loop. A checkpoint is never written after a number that is not finite.
    reporter = Reporter(args, log, first_step, train_set.fids, identities.pid_numbers)
    data = iter(batches.batches(train_set, identities, args, first_step, args.train_iterations))
    log.info('Starting training from iteration %d.', first_step)
    saved_step, broken_image = first_step, None

    def save_checkpoint():
        reporter.flush()
        step = int(global_step.numpy())
        checkpoints.save(root, step, state, args.keep_checkpoints, first_step)
        log.info('Saved %s.', checkpoints.prefix(root, step))
        return step

    for step in range(first_step, args.train_iterations):
        if interruption.requested:
            log.info('Interrupted by %s after %d iterations.', interruption.requested, step)
            break
        started = time.monotonic()
        try:
            batch = next(data)
        except tf.errors.OpError as error:
            rows = batches.rows_at(identities, args, step)
            broken_image = images.broken_image(images.paths(train_set.take(rows), args.image_root), error)
            break
        learning_rate = optimizer.learning_rate(step, args)
        result = train_step(batch['images'], batch['pids'], tf.constant(learning_rate, tf.float32),
                            tf.constant(optimizer.beta1(step, args), tf.float32), step < args.freeze_body_iterations)
        result = {name: value.numpy() for name, value in result.items()}
        rows = batch['rows'].numpy()
        if not all(np.isfinite(result[name]).all() for name in ('loss', 'gradient_norm', 'emb')):
            raise InputError(
                f'Iteration {step + 1} gave a loss of {result["loss"]} and a gradient of norm '
                f'{result["gradient_norm"]} on {", ".join(train_set.fids[rows])}. The run stops here; the last good '
                f'checkpoint is {checkpoints.prefix(root, saved_step)}. Try a lower --learning_rate.')
        reporter.iteration(step, rows, result, learning_rate, time.monotonic() - started)
        if args.checkpoint_frequency and (step + 1) % args.checkpoint_frequency == 0:
            saved_step = save_checkpoint()

    if int(global_step.numpy()) != saved_step:
        save_checkpoint()
    reporter.close()
    if broken_image:
        raise broken_image


if __name__ == '__main__':
    exit_with(main)

#!/usr/bin/env python3
"""Train an embedding with the triplet loss: flags → args.json → data → model → loss → optimizer → restore → loop."""
import time

import arguments
import experiment
import plugins
import quiet
from errors import InputError, exit_with


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
    check_files(train_set, args.image_root, args.allow_outside_root)
    if not args.resume:
        experiment.create(args.experiment_root)

    interruption = experiment.Interruption()
    with experiment.locked(args.experiment_root):
        log = experiment.open_log(args.experiment_root)
        for notice in notices:
            log.warning(notice)
        arguments.save(args)
        experiment.record_start(args.experiment_root, args, [args.train_set])
        train(args, train_set, interruption, log)


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
    from loss import cdist, monitor
    from progress import Reporter
    root = args.experiment_root

    keras.utils.set_random_seed(args.seed)
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()

    # Data: who is there. The batches are made when it is known at which step they start.
    identities = batches.Identities(train_set, args.batch_p)
    devices = tf.config.list_physical_devices('GPU') or tf.config.list_physical_devices('CPU')
    log.info('Training on %d images of %d identities, on %s.', len(train_set), len(identities.names),
             ' and '.join(device.name.removeprefix('/physical_device:') for device in devices))

    # Model, loss, optimizer.
    input_shape = (args.net_input_height, args.net_input_width, 3)
    network = model.build(args.model_name, args.head_name, args.embedding_dim, input_shape)
    losses_of = plugins.load('losses', args.loss).loss
    variables = model.named_variables(network)
    trainable = {name: variable for name, variable in variables.items() if variable.trainable}
    adam = optimizer.Adam(trainable)
    global_step = tf.Variable(0, dtype=tf.int32, trainable=False)
    state = {**variables, **adam.variables, 'global_step': global_step}

    # What the weights are at the start:
    # 1. those of the newest whole checkpoint of the run to be resumed.
    # 2. pre-trained ones in the body, fresh ones in the head.
    # 3. fresh ones.
    if args.resume:
        restored = checkpoints.load_newest(root, state, log)
        log.info('Resuming from %s.', restored)
    elif args.initial_checkpoint:
        model.load_body(network, args.initial_checkpoint)
        log.info('Initialised the body from %s.', args.initial_checkpoint)
    first_step = int(global_step.numpy())
    if first_step >= args.train_iterations:
        log.info('This run has had all of its %d iterations; nothing is left to do.', args.train_iterations)
        return
    if not args.resume:
        checkpoints.save(root, 0, state)

    @tf.function
    def train_step(batch_images, pids, learning_rate):
        with tf.GradientTape() as tape:
            endpoints = network(batch_images, training=True)
            dists = cdist(endpoints['emb'], endpoints['emb'], args.metric)
            losses = losses_of(dists, pids, pids, args.margin)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [variable.value for variable in trainable.values()])
        adam.apply(gradients, learning_rate)
        global_step.assign_add(1)
        return {'loss': loss, 'losses': losses, 'dists': dists, 'emb': endpoints['emb'],
                'emb_raw': endpoints['emb_raw'], 'gradient_norm': tf.linalg.global_norm(gradients),
                **monitor(dists, pids, pids, losses, args.batch_k - 1)}

    # The loop. A checkpoint is never written after a number that is not finite.
    reporter = Reporter(args, log, first_step, train_set.fids, identities.pid_numbers)
    data = iter(batches.batches(train_set, identities, args, first_step, args.train_iterations))
    log.info('Starting training from iteration %d.', first_step)
    saved_step = first_step
    for step in range(first_step, args.train_iterations):
        if interruption.requested:
            log.info('Interrupted by %s after %d iterations.', interruption.requested, step)
            break
        started = time.monotonic()
        try:
            batch = next(data)
        except tf.errors.OpError as error:
            rows = batches.rows_at(identities, args, step)
            raise images.broken_image(images.paths(train_set.take(rows), args.image_root), error) from error
        learning_rate = optimizer.learning_rate(step, args.learning_rate, args.decay_start_iteration,
                                                args.train_iterations)
        result = train_step(batch['images'], batch['pids'], tf.constant(learning_rate, tf.float32))
        result = {name: value.numpy() for name, value in result.items()}
        rows = batch['rows'].numpy()
        if not (np.isfinite(result['loss']) and np.isfinite(result['gradient_norm'])):
            raise InputError(
                f'Iteration {step + 1} gave a loss of {result["loss"]} and a gradient of norm '
                f'{result["gradient_norm"]} on {", ".join(train_set.fids[rows])}. The run stops here; the last good '
                f'checkpoint is {checkpoints.prefix(root, saved_step)}. Try a lower --learning_rate.')
        reporter.iteration(step, rows, result, learning_rate, time.monotonic() - started)
        if args.checkpoint_frequency and (step + 1) % args.checkpoint_frequency == 0:
            reporter.flush()
            checkpoints.save(root, step + 1, state)
            saved_step = step + 1

    finished_steps = int(global_step.numpy())
    if finished_steps != saved_step:
        reporter.flush()
        checkpoints.save(root, finished_steps, state)
    reporter.close()
    log.info('Saved %s.', checkpoints.prefix(root, finished_steps))


if __name__ == '__main__':
    exit_with(main)

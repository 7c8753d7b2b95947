#!/usr/bin/env python3
"""Adapt a net to unlabelled images, in rounds: embed them, group them into clusters, train on the clusters."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import dataclasses
import os
import shutil

import numpy as np

from tripletreid import argument_types, quiet
from tripletreid.adaptation import children, record
from tripletreid.argument_types import fraction, positive_int
from tripletreid.clustering import agreement, cluster_flags, clusterer, clusters_file, knowledge, partition, sweep
from tripletreid.dataset import Dataset, load_dataset
from tripletreid.dataset_writer import save_dataset
from tripletreid.embeddings.reader import Embeddings
from tripletreid.errors import exit_with, warn
from tripletreid.experiment import arguments, root, train_flags
from tripletreid.files import write_json
from tripletreid.image_root import check_files


def make_parser():
    """Return the parser of adapt.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Adapt a net to unlabelled images. Each round embeds the images, groups them into clusters and trains\n'
                    'the net on the clusters.',
        usage='%(prog)s --experiment_root DIR --initial_root DIR --images FOLDER [more flags]\n'
              '                [-- flags of train.py]\n'
              '       %(prog)s --experiment_root DIR --resume',
        example='python adapt.py --experiment_root runs/new --initial_root runs/first --images photos --rounds 10\n'
                'python adapt.py --experiment_root runs/new --resume\n'
                'python adapt.py --experiment_root runs/new --initial_root runs/first --images photos \\\n'
                '    -- --learning_rate 1e-4 --random_erasing 0.5')
    add = parser.add_argument_group('input and output').add_argument
    add('--experiment_root', required=True, metavar='DIR', help='new folder for the rounds and the adapted checkpoints')
    add('--initial_root', metavar='DIR', help='training run to start from')
    add('--checkpoint', metavar='NAME', help='checkpoint in the initial root (default: the last one)')
    add('--images', metavar='FOLDER', help='folder of unlabelled images, or a csv file; identities in the csv file are only '
        'compared with the clusters')
    add('--image_root', metavar='DIR', help='folder that the paths of a csv file are relative to (default: as in the '
        'initial training)')
    add('--resume', action='store_true', help='continue an interrupted adaptation; all flags are loaded from its adapt.json')

    add = parser.add_argument_group('rounds').add_argument
    add('--rounds', type=positive_int, default=20, metavar='N', help='largest number of rounds; with --resume, a '
        'number above the earlier one adds rounds (default: %(default)s)')
    add('--stop_at', type=fraction, default=0.98, metavar='F', help='stop when the clusters agree with the round before by '
        'this pairwise F (default: %(default)s)')
    add('train_flags', nargs='*', metavar='-- FLAG', help='flags of train.py for each round, after --; net, '
        f'metric and augmentation are inherited from the initial training, other defaults are {" ".join(DEFAULTS)}')

    add = parser.add_argument_group('clustering, as in cluster.py').add_argument
    add('--camera', metavar='PATTERN', help='regular expression for the camera in a file name: the mean embedding of each '
        "camera is subtracted, and the images of an identity in a batch come from many cameras")
    cluster_flags.add_to(add, 'chosen by the data in each round')

    add = parser.add_argument_group('more').add_argument
    add('--batch_size', type=positive_int, default=256, metavar='B', help='images embedded at a time (default: %(default)s)')
    add('--loading_threads', type=argument_types.threads, default=8, metavar='N', help='images loaded at a time (default: '
        '%(default)s)')
    add('--workers', type=argument_types.threads, default=1, metavar='N', help='processes that share the search for '
        'neighbours (default: %(default)s)')
    return parser


# Flags of train.py for a round. The classifier of cosines starts from the mean embeddings of the clusters.
DEFAULTS = ('--train_iterations 200 --batch_p 16 --batch_k 4 --decay_start_iteration -1 --checkpoint_frequency 100 '
            '--keep_checkpoints 1 --xent_weight 1 --classifier cosface --classifier_margin 0 --classifier_scale 20 '
            '--ema 0.99').split()
# These follow from the initial training and the clusters.
REFUSED = ('experiment_root', 'resume', 'train_set', 'image_root', 'initial_checkpoint', 'model_name', 'embedding_dim')


def main():
    parser = make_parser()
    args = parser.parse_args()
    interruption = children.Children()
    if args.resume:
        args = record.resumed(args, parser)
    else:
        check_flags(args, parser)
        root.create(args.experiment_root)
    with root.locked(args.experiment_root):
        if not args.resume:
            start(args)
        try:
            run_rounds(args, interruption)
        except children.Interrupted as interrupted:
            print(f'Interrupted by {interrupted}; --resume continues.')


def check_flags(args, parser):
    """End through `parser.error` where flags are missing or have no effect."""
    if not args.initial_root or not args.images:
        parser.error('--initial_root and --images are needed, unless --resume loads them')
    given = {flag.partition('=')[0].removeprefix('--') for flag in args.train_flags if flag.startswith('--')}
    for name in REFUSED:
        if name in given:
            parser.error(f'--{name} is set for each round and cannot be given after --')
    train_arguments(args, args.experiment_root)  # Ends with a message where train.py would refuse them.


def start(args):
    """Write the list of images and the record of a new adaptation."""
    trained, _ = arguments.load(args.initial_root)
    if os.path.isdir(args.images):
        from tripletreid.search import image_files
        found, skipped = image_files.in_folder(args.images)
        for sentence in skipped:
            warn(sentence)
        images = Dataset(args.images, np.full(len(found.fids), '?', object), np.array(found.fids, object))
        args.image_root = found.root
    else:
        images = load_dataset(args.images)
        args.image_root = args.image_root or arguments.stored_image_root(args.initial_root, trained)
        check_files(images, args.image_root)
    if args.camera:
        cameras = knowledge.groups_by_pattern(images.fids, args.camera, '--camera')
        images = dataclasses.replace(images, tracklets=cameras)
    save_dataset(record.images_file(args.experiment_root), images)
    record.save(args.experiment_root, args, [])


def run_rounds(args, interruption):
    """Run the rounds that are missing."""
    images = load_dataset(record.images_file(args.experiment_root))
    rounds = record.rounds(args.experiment_root)
    for number in range(len(rounds) + 1, args.rounds + 1):
        if rounds and rounds[-1]['agreement'] is not None and rounds[-1]['agreement'] >= args.stop_at:
            print(f'The clusters of round {number - 1} agree with the round before by {rounds[-1]["agreement"]:.3f}: done.')
            return
        rounds.append(run_round(args, number, images, interruption))
        record.save(args.experiment_root, args, rounds)
        if number > 1:
            shutil.rmtree(record.round_root(args.experiment_root, number - 1))
    print(f'{len(rounds)} rounds are done; the adapted net is in {args.experiment_root}.')


def run_round(args, number, images, interruption):
    """Embed, group and train; each phase is skipped where its result exists.

    Returns: the facts about the round that `record` stores, a dict.
    """
    folder, before = (record.round_root(args.experiment_root, each) for each in (number, number - 1))
    os.makedirs(folder, exist_ok=True)
    previous_root, previous_checkpoint = (args.initial_root, args.checkpoint) if number == 1 else (before, None)

    # 1. Embed with the net of the round before.
    embeddings_file = os.path.abspath(os.path.join(folder, 'embeddings.h5'))
    if not os.path.isfile(embeddings_file):
        trained, _ = arguments.load(previous_root)
        interruption.run('embed.py', '--experiment_root', previous_root, '--dataset',
                         record.images_file(args.experiment_root), '--image_root', args.image_root, '--filename',
                         embeddings_file, '--resume', '--batch_size', args.batch_size, '--loading_threads',
                         args.loading_threads, *(['--checkpoint', previous_checkpoint] if previous_checkpoint else []),
                         *(['--crop_augment', 'center'] if trained.crop_augment else []))

    # 2. Group.
    outputs = clusters_file.paths_of(os.path.join(folder, 'clusters.csv'))
    facts_file = os.path.join(folder, 'round.json')
    with Embeddings(embeddings_file) as embeddings:
        embeddings.check_matches(images)
        if not os.path.isfile(facts_file):
            facts = group(args, number, images, embeddings, outputs)
            np.save(os.path.join(folder, 'labels.npy'), facts.pop('labels'))
            write_json(facts_file, facts)
        labels = np.load(os.path.join(folder, 'labels.npy'))
        facts = record.read_json(facts_file)
        interruption.check()

        # 3. Prepare the training: weights so far, classifier from the clusters.
        if not os.path.isfile(os.path.join(folder, arguments.FILE)):
            with quiet.tensorflow_import():
                from tripletreid.adaptation import round_start
            rows = np.flatnonzero(labels >= 0)
            round_args = train_arguments(args, folder, outputs.clusters)
            round_start.write(round_args, previous_root, previous_checkpoint, number == 1,
                              embeddings.rows(0, len(embeddings))[rows])
        interruption.check()

    # 4. Train.
    interruption.run('train.py', '--experiment_root', folder, '--resume')
    interruption.check()
    facts['checkpoint'] = record.publish(args.experiment_root, folder, number)
    return facts


def group(args, number, images, embeddings, outputs):
    """Group the images of a round, print the table and write the clusters; returns the facts about the round."""
    settings = cluster_flags.settings(args)
    identities = np.unique(images.pids, return_inverse=True)[1] if len(set(images.pids)) > 1 else None
    cameras = images.tracklets if args.camera else None
    found = clusterer.cluster(embeddings, settings, cameras, identities=identities, workers=args.workers)
    counts = partition.sizes(found.labels)
    print(f'Round {number}: {len(counts)} clusters, {(found.labels < 0).sum()} outliers at threshold {found.threshold:g}.')
    print('\n'.join(sweep.table(found.rows, found.chosen)), flush=True)
    for sentence in found.doubts:
        warn(sentence)
    clusters_file.write(outputs, images, images, found, settings, None, embeddings, image_root=args.image_root,
                        camera=args.camera)
    before = os.path.join(record.round_root(args.experiment_root, number - 1), 'labels.npy')
    return {'round': number, 'clusters': len(counts), 'outliers': int((found.labels < 0).sum()),
            'threshold': found.threshold, 'silhouette': found.chosen.silhouette,
            'agreement': agreement.pairwise(found.labels, np.load(before))[2] if number > 1 else None,
            'pairwise_f': found.chosen.agreement.f if found.chosen.agreement else None, 'labels': found.labels}


def train_arguments(args, folder, train_set='clusters.csv'):
    """Return the arguments of train.py for a round in `folder`: net, metric and augmentation from the initial training,
    then the defaults, then those given after --."""
    trained, _ = arguments.load(args.initial_root)
    parser = train_flags.make_parser()
    argv = ['--experiment_root', folder, '--train_set', train_set, '--image_root', args.image_root or '.',
            '--loading_threads', str(args.loading_threads), *DEFAULTS, *args.train_flags]
    round_args = parser.parse_args(argv)
    for name in (*train_flags.MODEL_ARGS, *parser.names_in_group('augmentation'), 'metric'):
        if name not in parser.given:
            setattr(round_args, name, getattr(trained, name))
    round_args.resume = False
    return round_args


if __name__ == '__main__':
    exit_with(main, lower='--batch_size, --batch_p or --batch_k')

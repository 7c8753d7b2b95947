#!/usr/bin/env python3
"""Group unlabelled images into individuals: embeddings → graph of Jaccard distances → clusters → csv."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import dataclasses
import os

import numpy as np

from tripletreid import argument_types, quiet
from tripletreid.argument_types import EMBEDDINGS_OPTIONS, positive_int
from tripletreid.clustering import cluster_flags, clusters_file, features, knowledge, partition, review, sweep
from tripletreid.clustering.clusterer import Settings, cluster
from tripletreid.dataset import Dataset, is_dataset, load_dataset
from tripletreid.dataset_writer import save_dataset
from tripletreid.embeddings.reader import is_embeddings
from tripletreid.embeddings.shards import open_embeddings
from tripletreid.embeddings.writer import save_embeddings
from tripletreid.errors import InputError, exit_with, some, warn
from tripletreid.experiment import arguments
from tripletreid.files import check_output
from tripletreid.modeling import inference_flags

KNOWLEDGE = ('camera', 'moment', 'names', 'pool_tracklets')
MOST_PRINTED = 20  # Doubtful images, and pairs of identities.
EMBEDDING = ('experiment_root', 'checkpoint', 'weights', 'flip_augment', 'crop_augment', 'aggregator', 'loading_threads')


def make_parser():
    """Return the parser of cluster.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Group unlabelled images into individuals. The threshold is chosen by the data unless it is given.',
        usage='%(prog)s --images FOLDER --experiment_root DIR --out CSV [more flags]\n'
              '       %(prog)s --embeddings H5 --out CSV [more flags]',
        example='python cluster.py --images photos --experiment_root runs/first --out groups.csv\n'
                'python visualize.py clusters groups.csv')
    add = parser.add_argument_group('input and output').add_argument
    add('--embeddings', **EMBEDDINGS_OPTIONS, help='.h5 file of embed.py, or all of its shards')
    add('--images', metavar='FOLDER', help='folder or csv file of images to embed first, with --experiment_root')
    add('--experiment_root', metavar='DIR', help='training run whose net embeds --images')
    add('--checkpoint', metavar='NAME', help='checkpoint in the experiment root (default: the last one)')
    add('--image_root', metavar='DIR', help='folder that the paths of a csv file are relative to')
    add('--out', metavar='CSV', help='file to write: one identity per cluster; images that belong to no cluster are '
        'written to NAME_outliers.csv, settings and table to NAME.json, embeddings of --images to NAME_embeddings.h5')
    add('--dataset', metavar='CSV', help='csv file of the embeddings; its identities are compared with the clusters in the '
        'table and change nothing else')

    add = parser.add_argument_group('instead of grouping').add_argument
    add('--check_labels', action='store_true', help='instead of grouping, find images of --dataset that are closer to '
        'another identity, and pairs of identities that look like one')
    add('--apply', metavar='DECISIONS', help='write the dataset that the decisions of visualize.py clusters make of '
        '--clusters')
    add('--clusters', metavar='CSV', help='csv file of cluster.py that --apply changes')

    add = parser.add_argument_group('clustering').add_argument
    cluster_flags.add_to(add, 'chosen by the data')
    add('--individuals', type=positive_int, metavar='N', help='choose the threshold whose number of clusters is nearest to '
        'this number')

    add = parser.add_argument_group('knowledge about the images').add_argument
    add('--camera', metavar='PATTERN', help="regular expression for the camera in a file name, e.g. '_c(\\d)'; the mean "
        'embedding of each camera is subtracted')
    add('--moment', metavar='PATTERN', help="regular expression for camera and time in a file name, e.g. '_(c\\d_\\d+)'; "
        'images of one moment show different individuals')
    add('--names', metavar='CSV', help='csv file with the known identities of some of the images, which are kept')
    add('--pool_tracklets', action='store_true', help='group tracklets (third column of --dataset) instead of images')

    add = parser.add_argument_group('test-time augmentation of --images').add_argument
    inference_flags.add_flags(add)
    inference_flags.add_weights(add)

    add = parser.add_argument_group('more').add_argument
    add('--batch_size', type=positive_int, default=256, metavar='B', help='images at a time (default: %(default)s)')
    add('--loading_threads', type=argument_types.threads, default=8, metavar='N', help='images loaded at a time (default: '
        '%(default)s)')
    add('--workers', type=argument_types.threads, default=1, metavar='N', help='processes that share the search for '
        'neighbours (default: %(default)s)')
    add('--dask', metavar='ADDRESS', help=f'use a Dask cluster instead: {argument_types.DASK_ADDRESS}')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_flags(args, parser)
    outputs = clusters_file.paths_of(args.out)
    inputs = [args.embeddings, args.images, args.dataset, args.names, args.apply, args.clusters]
    if args.apply:
        check_output(args.out, '--out', 'a csv file of a dataset', is_dataset, inputs)
        return apply_decisions(args)
    for path in outputs[:3]:
        check_output(path, '--out', 'a file of cluster.py', clusters_file.is_own, inputs)
    if args.images:
        check_output(outputs.embeddings, '--out', 'an .h5 file of embeddings', is_embeddings, inputs)
    embeddings, dataset, image_root = open_input(args, outputs)
    with embeddings:
        (check_labels if args.check_labels else group)(args, embeddings, dataset, image_root, outputs)


def check_flags(args, parser):
    """End through `parser.error` where flags do not go together."""
    parser.check(args)
    if args.out is None:
        parser.error('--out CSV is needed: the file to write')
    if args.apply or args.clusters:
        if not (args.apply and args.clusters):
            parser.error('--apply and --clusters belong together: give both or neither')
        argument_types.refuse_given(parser, {*cluster_flags.NAMES, *KNOWLEDGE, *EMBEDDING, 'embeddings', 'images', 'dataset',
                                             'workers', 'dask', 'batch_size', 'check_labels'},
                                    '--apply only needs --clusters and --out')
        return
    if (args.embeddings is None) == (args.images is None):
        parser.error('give either --embeddings H5, or --images FOLDER with --experiment_root DIR')
    if args.images and not args.experiment_root:
        parser.error('--images needs --experiment_root DIR, the training run whose net embeds them')
    if args.embeddings:
        argument_types.refuse_given(parser, set(EMBEDDING), 'the --embeddings are given')
    if args.threshold is not None and args.individuals is not None:
        parser.error('--threshold and --individuals are two ways to choose the threshold: give one')
    if args.pool_tracklets and not args.dataset:
        parser.error('--pool_tracklets needs --dataset CSV, whose third column names the tracklets')
    if args.check_labels:
        if not args.dataset:
            parser.error('--check_labels needs --dataset CSV, the identities to check')
        without_effect = {*cluster_flags.NAMES, 'names', 'pool_tracklets', 'workers', 'dask'} - {'whitening'}
        argument_types.refuse_given(parser, without_effect, '--check_labels does not group')
    if args.dask:
        argument_types.refuse_given(parser, {'workers'}, '--dask has workers of its own')


def open_input(args, outputs):
    """Open the embeddings to group.

    Returns: open `Embeddings`, or an array that behaves like them; the `Dataset` of the rows, whose identities are '?'
        where none are known; the folder of the images, or None.
    """
    csv = args.dataset
    if args.images:
        embeddings = embed(args, outputs.embeddings)
    else:
        embeddings = open_embeddings(args.embeddings)
    image_root = args.image_root or embeddings.parameters.get('image_root')
    if csv is None and not embeddings.has_fids:
        raise InputError(f'{embeddings.path} does not name its images: give their csv file as --dataset.')
    if csv is None:
        fids = embeddings.fids
        return embeddings, Dataset(embeddings.path, np.full(len(fids), '?', object), fids), image_root
    dataset = load_dataset(csv)
    if embeddings.pooled and dataset.tracklets is None:
        raise InputError(f'{embeddings.path} has one row per tracklet, but {csv} has no tracklet column.')
    embeddings.check_matches(dataset.first_frames() if embeddings.pooled else dataset)
    return embeddings, dataset, image_root


def embed(args, path):
    """Embed --images, write their embeddings to `path` and open that file; known images come from the index of search.py."""
    trained, _ = arguments.load(args.experiment_root)
    from tripletreid.search import image_files, index
    if os.path.isdir(args.images):
        if args.image_root is not None:
            raise InputError('--image_root has no effect: the images are in the folder --images.')
        files, warnings = image_files.in_folder(args.images)
    else:
        image_root = args.image_root or arguments.stored_image_root(args.experiment_root, trained)
        files, warnings = image_files.in_dataset(args.images, image_root), []
    with quiet.tensorflow_import():
        from tripletreid.search import embedder
    model = embedder.Embedder(args, trained)
    found = index.up_to_date(model.index_name(args.images), files, model, print)
    if problems := found.problems:
        first = min(problems)
        warnings.append(f'Images that cannot be read are skipped: {some(problems)}; {first}: {problems[first]}.')
    for sentence in warnings:
        warn(sentence)
    unnamed = Dataset(args.images, np.full(len(found), '?', object), found.fids)
    save_embeddings(path, unnamed, found.rows(0, len(found)), {**model.made_by, 'image_root': files.root})
    return open_embeddings([path])


def group(args, embeddings, dataset, image_root, outputs):
    """Group the rows and write the csv files."""
    settings = cluster_flags.settings(args)
    rows, source, unit = dataset, embeddings, 'images'
    if embeddings.pooled or args.pool_tracklets:
        rows, unit = dataset.first_frames(), 'tracklets'
        if not embeddings.pooled:
            source = clusters_file.pooled(embeddings, dataset)
    cameras = args.camera and knowledge.groups_by_pattern(rows.fids, args.camera, '--camera')
    moments = None
    if args.moment:
        moments = np.unique(knowledge.groups_by_pattern(rows.fids, args.moment, '--moment'), return_inverse=True)[1]
    known = clusters_file.known_names(args.names, rows) if args.names else None
    identities = None
    if args.dataset and len(set(rows.pids)) > 1:
        identities = np.where(rows.junk, knowledge.UNKNOWN, np.unique(rows.pids, return_inverse=True)[1])
    found = cluster(source, settings, cameras, moments, known and known.numbers, identities, args.dask or args.workers,
                    args.batch_size)
    if len(found.rows) > 1:
        print('\n'.join(sweep.table(found.rows, found.chosen)))
    for sentence in found.doubts:
        warn(sentence)
    counts = partition.sizes(found.labels)
    clusters_file.write(outputs, dataset, rows, found, settings, known, embeddings, image_root=image_root,
                        camera=args.camera, moment=args.moment, dataset_path=args.dataset)
    outliers = int((found.labels < 0).sum())
    print(f'{len(rows)} {unit} at threshold {found.threshold:g}: {len(counts)} clusters of {counts.min()} to {counts.max()} '
          f'{unit} in {outputs.clusters}, {outliers} outliers in {outputs.outliers}.')


def check_labels(args, embeddings, dataset, image_root, outputs):
    """Print doubtful labels and write the identities as clusters, for visualize.py clusters."""
    if embeddings.pooled:
        raise InputError(f'{embeddings.path} has one row per tracklet; --check_labels needs one row per image.')
    cameras = args.camera and knowledge.groups_by_pattern(dataset.fids, args.camera, '--camera')
    moments = args.moment and knowledge.groups_by_pattern(dataset.fids, args.moment, '--moment')
    prepared = features.features(embeddings, cameras, args.whitening).all()
    labelled = ~dataset.junk
    dataset, prepared = dataset.take(labelled), prepared[labelled]
    reviewed = review.review(prepared, dataset.pids, moments if moments is None else moments[labelled])
    closer = [(each.name, row, other) for each in reviewed for row, other in each.closer.items()]
    pairs = review.similar_pairs(reviewed)
    for name, row, other in closer[:MOST_PRINTED]:
        print(f'{dataset.fids[row]}: labelled {name}, closer to {other}')
    for first, second, distance in pairs[:MOST_PRINTED]:
        print(f'{first} and {second} may be one identity: distance {distance:.2f}')
    settings = dataclasses.asdict(Settings(whitening=args.whitening))
    clusters_file.write_labelled(outputs, dataset, embeddings, image_root=image_root, settings=settings, camera=args.camera,
                                 moment=args.moment, dataset_path=args.dataset)
    print(f'{len(closer)} of {len(dataset)} images are closer to another identity, {len(pairs)} pairs of {len(reviewed)} '
          f'identities look like one. To look at them: python visualize.py clusters {outputs.clusters}')


def apply_decisions(args):
    """Write the dataset that decisions make of a clustering."""
    dataset, _ = clusters_file.read_clusters(args.clusters)
    decisions = clusters_file.read_decisions(args.apply, dataset)
    result = clusters_file.decided(dataset, decisions)
    save_dataset(args.out, result)
    print(f'{len(decisions)} decisions applied: {len(result)} images of {len(set(result.pids))} identities in {args.out}, '
          f'{len(dataset) - len(result)} thrown out.')


if __name__ == '__main__':
    exit_with(main, lower='--batch_size or --k1')

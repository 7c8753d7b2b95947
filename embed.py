#!/usr/bin/env python3
"""Embed a dataset with a trained model: csv and images → .h5. What the model is stands in its args.json."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import argparse
import dataclasses
import functools
import os
import sys

import numpy as np

from tripletreid import argument_types, dask_cluster, pictures, quiet
from tripletreid.errors import InputError, exit_with, warn
from tripletreid.experiment import arguments, flag_checks
from tripletreid.files import check_output
from tripletreid.modeling import embedding_files, inference_flags, recorded_facts


def make_parser():
    """The parser of embed.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Embed a dataset with a trained model.',
        usage='%(prog)s --experiment_root DIR --dataset CSV [more flags]',
        example='python embed.py --experiment_root runs/first --dataset data/folder_query.csv\n'
                'python embed.py --experiment_root runs/first --dataset data/folder_test.csv \\\n'
                '    --flip_augment --crop_augment five --aggregator mean --filename augmented.h5')
    add = parser.add_argument_group('what is needed').add_argument
    add('--experiment_root', required=True, metavar='DIR', help='where the training run is kept')
    add('--dataset', required=True, metavar='CSV', help='csv file: identity,relative/path.jpg per line')

    add = parser.add_argument_group('what and where').add_argument
    add('--image_root', metavar='DIR', help='folder that the paths are relative to (that of the training run)')
    add('--checkpoint', metavar='NAME', help='name of a checkpoint in the experiment root (the last one)')
    inference_flags.add_weights(add)
    add('--filename', metavar='H5', help="file to write, relative to the experiment root (the dataset's name + "
        '_embeddings.h5)')
    add('--resume', action='store_true', help='go on where an interrupted embedding stopped')
    add('--shards', type=argument_types.positive_int, metavar='N', help='write N files, each whole or not at all, with '
        'equal parts of the rows: NAME-00000-of-0000N.h5, …; all commands take them together for one')

    add = parser.add_argument_group('test-time augmentation').add_argument
    inference_flags.add_flags(add)

    add = parser.add_argument_group('more').add_argument
    add('--batch_size', type=argument_types.positive_int, default=256, metavar='B', help='images at a time '
        '(%(default)s)')
    add('--loading_threads', type=argument_types.threads, default=8, metavar='N', help='images loaded at a time '
        '(%(default)s)')
    add('--pool_tracklets', choices=('mean',), help='one row a tracklet (third column of the csv): its mean frame')
    add('--allow_outside_root', action='store_true', help='also read images that lie outside of the image root')
    add('--skip_broken_images', action='store_true', help='look at every image first; list those that cannot be read '
        'beside the .h5 and leave them out')
    add('--mixed_precision', choices=('none', 'bfloat16', 'float16'), default='none', help='compute the net in 16 bits, '
        'whatever it was trained in (%(default)s)')
    add('--distribute', choices=('none', 'mirrored'), default='none', help='mirrored: divide the images among the GPUs '
        'of this host (%(default)s)')
    add('--devices', type=argument_types.threads, metavar='N', needs='--distribute mirrored', help='number of GPUs (all)')
    add('--dask', metavar='ADDRESS', needs='--shards',
        help='have the workers of a Dask cluster make the --shards, a worker one at a time: '
        f'{argument_types.DASK_ADDRESS}')
    add('--quiet', action='store_true', help='say nothing but warnings and errors')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    parser.check(args)
    if args.dask and args.distribute != 'none':
        parser.error('--distribute mirrored does not go with --dask, whose workers have a device each')

    # The training run. Its crop_augment is a switch and ours is a word: each is read from its own source.
    trained, _ = arguments.load(args.experiment_root)
    crop_of_validation = inference_flags.validation_crop(trained)
    if trained.crop_augment != bool(args.crop_augment):
        print(f'Warning: crop augmentation differs between training ({trained.crop_augment}) and embedding '
              f'({args.crop_augment}); validation while training embeds '
              f'{f"with --crop_augment {crop_of_validation}" if crop_of_validation else "without --crop_augment"}.',
              file=sys.stderr)
    small_crops = flag_checks.sentence_of_small_crops(trained) if args.crop_augment else None
    if small_crops:
        print(f'Warning: {small_crops}', file=sys.stderr)

    # The file to write.
    from tripletreid.dataset import load_dataset, warn_of_lookalikes
    from tripletreid.dataset_parts import parts as parts_of_csv
    from tripletreid.embeddings.reader import is_embeddings
    from tripletreid.embeddings.shards import shard_names
    from tripletreid.image_root import check_files, image_path
    filename = args.filename
    if filename is None:
        filename = os.path.splitext(os.path.basename(args.dataset))[0] + '_embeddings.h5'
    filename = os.path.join(args.experiment_root, filename)
    for path in shard_names(filename, args.shards):
        check_output(path, '--filename', 'an .h5 file of embeddings', is_embeddings, [args.dataset])
    if args.skip_broken_images:
        check_lists_beside(filename, args.dataset)

    # The images, and the rows of the file: one an image, or one a tracklet, which is named after its first frame.
    image_root = args.image_root or arguments.stored_image_root(args.experiment_root, trained)
    if args.dask and not (args.pool_tracklets or args.skip_broken_images):
        dataset, parts = None, parts_of_csv(args.dataset, args.shards)  # Workers read them, and look for the images.
        images = sum(part.rows for part in parts)
    else:
        dataset = load_dataset(args.dataset)
        check_files(dataset, image_root, args.allow_outside_root)
        warn_of_lookalikes(dataset)
        for sentence in pictures.doubts_of_files(dataset.fids, lambda fid: image_path(image_root, fid)):
            warn(sentence)
        if args.pool_tracklets and dataset.tracklets is None:
            raise InputError(f'{args.dataset} has no third column, which would name the tracklets to pool.')
    with quiet.tensorflow_import():
        from tripletreid.distribute import strategies
    strategy = strategies.create(args.distribute, args.devices)
    if args.skip_broken_images:
        dataset = without_broken_images(dataset, image_root, filename, args)
    if dataset is not None:
        parts, images = parts_of(dataset, args), len(dataset)

    # What all files have in common, and the model.
    import tqdm

    from tripletreid import provenance
    from tripletreid.experiment import checkpoints
    from tripletreid.input_pipeline import augmentation
    checkpoint = checkpoints.of_root(args.experiment_root, args.checkpoint)
    sizes = inference_flags.sizes(trained, args.crop_augment)
    parameters = {**vars(args), 'resume': None, 'quiet': None, 'loading_threads': None, 'distribute': None,
                  'devices': None, 'dask': None, 'image_root': image_root, 'checkpoint': os.path.basename(checkpoint),
                  'checkpoint_sha256': provenance.file_hash(checkpoints.index_file(checkpoint)),
                  'metric': recorded_facts.run_metric(trained), **recorded_facts.making(trained, sizes)}
    traces = {'versions': provenance.versions(), 'dataset_sha256': provenance.file_hash(args.dataset)}
    job = embedding_files.Job(
        args, args.experiment_root, checkpoint, image_root, trained.embedding_dim, sizes,
        augmentation.variant_names(args.flip_augment, args.crop_augment), parameters, traces)
    if not args.dask:
        with strategy.scope():
            network = job.network()
    if not args.quiet:
        print(f'Embedding {images} images of {args.dataset} with {checkpoint}.')

    # Embed. An interrupted embedding keeps its rows, and --resume goes on behind them.
    tasks = [(path, part) for path, part in zip(shard_names(filename, args.shards), parts)
             if not (args.shards and args.resume and job.content(part).is_in(path))]
    if args.dask:
        embed_on_cluster(job, tasks)
    else:
        rows = sum(len(job.content(part).dataset) for _, part in tasks)
        with tqdm.tqdm(total=rows, unit=' rows', disable=args.quiet) as bar:
            for path, part in tasks:
                embedding_files.write(job, path, part, network, strategy, bar.update)
    if not args.quiet:
        written = f'{os.path.splitext(filename)[0]}-*-of-{args.shards:05}.h5' if args.shards else filename
        print(f'Saved {written}.')


def parts_of(dataset, args):
    """The `Dataset`s of --shards files; of one file the whole."""
    from tripletreid.dataset_parts import bounds
    if args.shards is None:
        return [dataset]
    row_of_image = dataset.tracklet_of_row() if args.pool_tracklets else np.arange(len(dataset))
    rows = int(row_of_image.max()) + 1
    if args.shards > rows:
        raise InputError(f'--shards {args.shards} is more than the {rows} rows of {args.dataset}: take at most as many.')
    images = np.argsort(row_of_image, kind='stable')
    firsts = np.searchsorted(row_of_image[images], bounds(rows, args.shards))
    return (dataset.take(images[first:last]) for first, last in zip(firsts, firsts[1:]))


def embed_on_cluster(job, tasks):
    """Have the workers of --dask write files, tasks (path, `Dataset` or part of the csv file). They see the same files
    under the same paths."""
    here = {'experiment_root': os.path.abspath(job.experiment_root), 'image_root': os.path.abspath(job.image_root)}
    job = dataclasses.replace(job, **here, args=argparse.Namespace(**{**vars(job.args), 'quiet': True}))
    tasks = [(os.path.abspath(path), part) for path, part in tasks]
    with dask_cluster.pool(job.args.dask) as share:
        for _ in share(functools.partial(embedding_files.write_by_worker, job), tasks, 'Shards'):
            pass


def without_broken_images(dataset, image_root, filename, args):
    """The `Dataset` without images that cannot be read, which are listed beside the embeddings; csv files of both."""
    from tripletreid.dataset_writer import save_dataset
    from tripletreid.input_pipeline import images
    stem = os.path.splitext(filename)[0]
    readable = images.without_broken(dataset, image_root, f'{stem}_broken.csv', args.resume,
                                     lambda sentence: print(sentence, file=sys.stderr))
    if len(readable) < len(dataset):
        save_dataset(f'{stem}.csv', readable)
        print(f'{len(dataset) - len(readable)} broken images are left out: evaluate with {stem}.csv instead of '
              f'{args.dataset}.', file=sys.stderr)
    return readable


def check_lists_beside(filename, dataset):
    """Check that the csv files of --skip_broken_images, beside the .h5 file to write, are not there or belong to it."""
    from tripletreid.embeddings.writer import unfinished
    stem = os.path.splitext(filename)[0]
    is_made_anew = os.path.exists(filename) or os.path.exists(unfinished(filename))
    for path in (f'{stem}.csv', f'{stem}_broken.csv'):
        check_output(path, '--filename', f'a list of images beside {filename}', lambda path: is_made_anew, [dataset])


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')

#!/usr/bin/env python3
"""Embed a dataset with a trained model: csv and images → .h5. The args.json of the run describes the model."""
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

# The settings of an export that has no model card.
EXPORT_FLAGS = ('pixels', 'layout', 'net_input_height', 'net_input_width', 'resize', 'jpeg')


def make_parser():
    """Return the parser of embed.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Embed a dataset with a trained model, or with an exported one.',
        usage='%(prog)s --experiment_root DIR --dataset CSV [more flags]\n'
              '       %(prog)s --exported FILE --dataset CSV --image_root DIR [more flags]',
        example='python embed.py --experiment_root runs/first --dataset data/folder_query.csv\n'
                'python embed.py --experiment_root runs/first --dataset data/folder_test.csv \\\n'
                '    --flip_augment --crop_augment five --aggregator mean --filename augmented.h5\n'
                'python embed.py --exported osnet.onnx --pixels imagenet --dataset photos.csv --image_root photos')
    add = parser.add_argument_group('required').add_argument
    add('--experiment_root', metavar='DIR', help='folder of a training run or of an imported model')
    add('--exported', metavar='FILE', help='instead of an experiment root: an .onnx or .tflite file or a SavedModel folder, '
        'by freeze.py or by others')
    add('--dataset', required=True, metavar='CSV', help='csv file with one identity,relative/path.jpg per line')

    add = parser.add_argument_group('input and output').add_argument
    add('--image_root', metavar='DIR', help="folder that the paths are relative to (default: the training's)")
    add('--checkpoint', metavar='NAME', needs='--experiment_root', help='name of a checkpoint in the experiment root '
        '(default: the newest)')
    inference_flags.add_weights(add)
    add('--filename', metavar='H5', help="file to write, relative to the experiment root (default: the dataset's name + "
        '_embeddings.h5)')
    add('--resume', action='store_true', help='continue an interrupted embedding')
    add('--shards', type=argument_types.positive_int, metavar='N', help='write N files with equal parts of the rows: '
        'NAME-00000-of-0000N.h5, …; all commands read them together as one')

    add = parser.add_argument_group('test-time augmentation').add_argument
    inference_flags.add_flags(add)

    add = parser.add_argument_group('exports without a model card').add_argument
    add('--pixels', choices=('rgb255', 'unit', 'imagenet', 'half', 'clip'), needs='--exported', help='scaling of pixels '
        "before the export: RGB 0..255, 0..1, mean 0 and variance 1 over ImageNet, -1..1, or by CLIP's mean and variance")
    add('--layout', choices=('nhwc', 'nchw'), needs='--exported', help='order of the axes (default: as the graph shows it)')
    add('--net_input_height', type=argument_types.side, metavar='H', needs='--exported', help='height of the images '
        '(default: as the graph has it)')
    add('--net_input_width', type=argument_types.side, metavar='W', needs='--exported', help='width of the images '
        '(default: as the graph has it)')
    add('--resize', choices=('tf1', 'bilinear', 'bicubic'), needs='--exported', help='resizing of images, as in train.py '
        '(default: bilinear)')
    add('--jpeg', choices=('fast', 'accurate'), needs='--exported', help='JPEG decoder, as in train.py '
        '(default: accurate)')

    add = parser.add_argument_group('more').add_argument
    add('--batch_size', type=argument_types.positive_int, default=256, metavar='B', help='images per batch (default: '
        '%(default)s)')
    add('--loading_threads', type=argument_types.threads, default=8, metavar='N', help='images loaded at a time (default: '
        '%(default)s)')
    add('--pool_tracklets', choices=('mean',), help='write one row per tracklet (third column of the csv): the mean over '
        'its frames')
    add('--allow_outside_root', action='store_true', help='also read images outside the image root')
    add('--skip_broken_images', action='store_true', help='check every image first, list unreadable ones next to the .h5 '
        'and skip them')
    add('--mixed_precision', choices=('none', 'bfloat16', 'float16'), default='none', needs='--experiment_root',
        help='compute the net in 16 bits, whatever the training used (default: %(default)s)')
    add('--distribute', choices=('none', 'mirrored'), default='none', help='mirrored: divide the images among the GPUs '
        'of this host (default: %(default)s)')
    add('--devices', type=argument_types.threads, metavar='N', needs='--distribute mirrored', help='number of GPUs '
        '(default: all)')
    add('--dask', metavar='ADDRESS', needs='--shards', help='let the workers of a Dask cluster write the shards, one at a '
        f'time each: {argument_types.DASK_ADDRESS}')
    add('--quiet', action='store_true', help='print warnings and errors only')
    return parser


def check(args, parser):
    """Check the arguments together; end through `parser.error`."""
    if bool(args.experiment_root) == bool(args.exported):
        parser.error('name an --experiment_root or an --exported model, not both')
    parser.check(args)
    if args.dask and args.distribute != 'none':
        parser.error('--distribute mirrored does not go with --dask, whose workers have a device each')
    if args.exported and (args.distribute != 'none' or args.crop_augment):
        parser.error(f'{"--crop_augment" if args.crop_augment else "--distribute"} needs --experiment_root: an export takes '
                     f'images of one size on one device')
    if args.exported and not args.image_root:
        parser.error('--exported needs an --image_root')


def main():
    parser = make_parser()
    args = parser.parse_args()
    check(args, parser)
    exported = open_export(args) if args.exported else None
    trained = exported.trained() if exported else arguments.load(args.experiment_root)[0]
    if not exported:
        warn_of_crops(trained, args)
    filename = output_path(args)

    # The images, and the rows of the file: one per image, or one per tracklet, with the name of its first frame.
    from tripletreid.dataset_parts import parts as parts_of_csv
    from tripletreid.embeddings.shards import shard_names
    image_root = args.image_root or arguments.stored_image_root(args.experiment_root, trained)
    if args.dask and not (args.pool_tracklets or args.skip_broken_images):
        dataset, parts = None, parts_of_csv(args.dataset, args.shards)  # Workers read the csv file and check its images.
        images = sum(part.rows for part in parts)
    else:
        dataset = load_checked(args, image_root)
    with quiet.tensorflow_import():
        from tripletreid.distribute import strategies
    strategy = strategies.create(args.distribute, args.devices)
    if args.skip_broken_images:
        dataset = without_broken_images(dataset, image_root, filename, args)
    if dataset is not None:
        parts, images = divide(dataset, args), len(dataset)

    # The model, and the common settings of all files.
    import tqdm
    job, model_path = make_job(args, trained, exported, image_root)
    if not args.dask:
        with strategy.scope():
            network = exported or job.network()
    if not args.quiet:
        print(f'Embedding {images} images of {args.dataset} with {model_path}{arguments.import_note(trained)}.')

    # Embed. An interrupted embedding keeps its rows, and --resume continues after them.
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


def open_export(args):
    """Return the `ExportedModel` of --exported; print its settings where it has no model card."""
    with quiet.tensorflow_import():
        from tripletreid.modeling import exported_model
    exported = exported_model.ExportedModel(args.exported, {name: getattr(args, name) for name in EXPORT_FLAGS})
    if not (exported.has_card or args.quiet):
        flags = ' '.join(f'--{name} {value}' for name, value in exported.settings.items())
        print(f'{args.exported} has no model card; it is used with {flags}.')
    return exported


def warn_of_crops(trained, args):
    """Warn where images are cropped differently than in training, or where crops are a small part of an image."""
    crop = inference_flags.validation_crop(trained)
    if trained.crop_augment != bool(args.crop_augment):
        print(f'Warning: crop augmentation differs between training ({trained.crop_augment}) and embedding '
              f'({args.crop_augment}); validation while training embeds '
              f'{f"with --crop_augment {crop}" if crop else "without --crop_augment"}.', file=sys.stderr)
    small_crops = flag_checks.sentence_of_small_crops(trained) if args.crop_augment else None
    if small_crops:
        print(f'Warning: {small_crops}', file=sys.stderr)


def output_path(args):
    """Return the path of the file to write; of shards, the path that their names follow from.

    Raises:
        InputError: it, or a list of images next to it, would replace a file of another kind.
    """
    from tripletreid.embeddings.reader import is_embeddings
    from tripletreid.embeddings.shards import shard_names
    name = args.filename or os.path.splitext(os.path.basename(args.dataset))[0] + '_embeddings.h5'
    folder = args.experiment_root or os.path.dirname(os.path.normpath(args.exported))
    filename = os.path.join(folder, name)
    for path in shard_names(filename, args.shards):
        check_output(path, '--filename', 'an .h5 file of embeddings', is_embeddings, [args.dataset])
    if args.skip_broken_images:
        check_image_lists(filename, args.dataset)
    return filename


def load_checked(args, image_root):
    """Return the `Dataset` to embed; warn of names and pictures that may be mistakes.

    Raises:
        InputError: an image that is missing, or no tracklets to pool.
    """
    from tripletreid.dataset import load_dataset, warn_of_lookalikes
    from tripletreid.image_root import check_files, image_path
    dataset = load_dataset(args.dataset)
    check_files(dataset, image_root, args.allow_outside_root)
    warn_of_lookalikes(dataset)
    for sentence in pictures.doubts_of_files(dataset.fids, lambda fid: image_path(image_root, fid)):
        warn(sentence)
    if args.pool_tracklets and dataset.tracklets is None:
        raise InputError(f'{args.dataset} has no third column, which would name the tracklets to pool.')
    return dataset


def make_job(args, trained, exported, image_root):
    """Return (`embedding_files.Job`, path of the checkpoint or of the export)."""
    from tripletreid import provenance
    from tripletreid.experiment import checkpoints
    from tripletreid.input_pipeline import augmentation
    from tripletreid.modeling import model_card
    view = inference_flags.view(trained, args.crop_augment, args.flip_augment)
    if exported:
        checkpoint, sha256 = args.exported, model_card.hash_of(args.exported)
    else:
        checkpoint = checkpoints.find_in_root(args.experiment_root, args.checkpoint)
        sha256 = provenance.file_hash(checkpoints.index_file(checkpoint))
    facts = exported.facts() if exported else {'metric': recorded_facts.run_metric(trained),
                                               **recorded_facts.making(trained, view)}
    parameters = {**vars(args), 'exported': None, 'resume': None, 'quiet': None, 'loading_threads': None,
                  'distribute': None, 'devices': None, 'dask': None, 'image_root': image_root,
                  'checkpoint': os.path.basename(checkpoint), 'checkpoint_sha256': sha256, **facts}
    traces = {'versions': provenance.versions(), 'dataset_sha256': provenance.file_hash(args.dataset)}
    variant_names = augmentation.variant_names(args.flip_augment, args.crop_augment)
    job = embedding_files.Job(args, args.experiment_root, checkpoint, image_root, trained.embedding_dim, view,
                              variant_names, parameters, traces)
    return job, checkpoint


def divide(dataset, args):
    """Return the `Dataset`s of the --shards files, or of a single file."""
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
    """Let the workers of --dask write files, tasks (path, `Dataset` or part of the csv file).

    The workers see the same files under the same absolute paths.
    """
    changed = {**vars(job.args), 'quiet': True}
    for name in ('experiment_root', 'exported'):
        changed[name] = changed[name] and os.path.abspath(changed[name])
    job = dataclasses.replace(job, args=argparse.Namespace(**changed), experiment_root=changed['experiment_root'],
                              image_root=os.path.abspath(job.image_root))
    tasks = [(os.path.abspath(path), part) for path, part in tasks]
    with dask_cluster.pool(job.args.dask) as share:
        for _ in share(functools.partial(embedding_files.write_by_worker, job), tasks, 'Shards'):
            pass


def without_broken_images(dataset, image_root, filename, args):
    """Return the `Dataset` without unreadable images; write csv files of both next to the embeddings."""
    from tripletreid.dataset_writer import save_dataset
    from tripletreid.input_pipeline import images
    stem = os.path.splitext(filename)[0]
    readable = images.without_broken(dataset, image_root, f'{stem}_broken.csv', args.resume,
                                     lambda sentence: print(sentence, file=sys.stderr))
    if len(readable) < len(dataset):
        save_dataset(f'{stem}.csv', readable)
        print(f'{len(dataset) - len(readable)} broken images are skipped: evaluate with {stem}.csv instead of '
              f'{args.dataset}.', file=sys.stderr)
    return readable


def check_image_lists(filename, dataset):
    """Check that the csv files of --skip_broken_images next to the .h5 file are new or belong to it."""
    from tripletreid.embeddings.writer import unfinished
    stem = os.path.splitext(filename)[0]
    is_replaced = os.path.exists(filename) or os.path.exists(unfinished(filename))
    for path in (f'{stem}.csv', f'{stem}_broken.csv'):
        check_output(path, '--filename', f'a list of images next to {filename}', lambda path: is_replaced, [dataset])


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')

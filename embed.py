#!/usr/bin/env python3
"""Embed a dataset with a trained model: csv and images → .h5. What the model is stands in its args.json."""
if __name__ == '__main__':  # Before all other imports.
    from reid import startup
    startup.settle()

import os
import sys

from reid import argument_types, quiet, signals
from reid.errors import InputError, exit_with
from reid.experiment import arguments
from reid.files import check_output
from reid.modeling import inference_flags


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
    add('--devices', type=argument_types.threads, metavar='N', help='with --distribute mirrored: how many GPUs (all)')
    add('--quiet', action='store_true', help='say nothing but warnings and errors')
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    inference_flags.check(args, parser)

    # The training run. Its crop_augment is a switch and ours is a word: each is read from its own source.
    trained, _ = arguments.load(args.experiment_root)
    crop_of_validation = inference_flags.validation_crop(trained)
    if trained.crop_augment != bool(args.crop_augment):
        print(f'Warning: crop augmentation differs between training ({trained.crop_augment}) and embedding '
              f'({args.crop_augment}); validation while training embeds '
              f'{f"with --crop_augment {crop_of_validation}" if crop_of_validation else "without --crop_augment"}.',
              file=sys.stderr)
    small_crops = arguments.sentence_of_small_crops(trained) if args.crop_augment else None
    if small_crops:
        print(f'Warning: {small_crops}', file=sys.stderr)

    # The file to write.
    from reid.dataset import check_files, load_dataset
    from reid.embeddings import EmbeddingWriter, is_embeddings
    filename = args.filename
    if filename is None:
        filename = os.path.splitext(os.path.basename(args.dataset))[0] + '_embeddings.h5'
    filename = os.path.join(args.experiment_root, filename)
    check_output(filename, '--filename', 'an .h5 file of embeddings', is_embeddings, [args.dataset])
    if args.skip_broken_images:
        check_lists_beside(filename, args.dataset)

    # The images, and the rows of the file: one an image, or one a tracklet, which is named after its first frame.
    dataset = load_dataset(args.dataset)
    image_root = args.image_root or arguments.stored_image_root(args.experiment_root, trained)
    check_files(dataset, image_root, args.allow_outside_root)
    if args.pool_tracklets and dataset.tracklets is None:
        raise InputError(f'{args.dataset} has no third column, which would name the tracklets to pool.')
    with quiet.tensorflow_import():
        from reid import distribute
    strategy = distribute.strategy(args.distribute, args.devices)
    if args.skip_broken_images:
        dataset = without_broken_images(dataset, image_root, filename, args)

    # The model.
    from reid import provenance
    from reid.experiment import checkpoints
    from reid.input_pipeline import augmentation
    from reid.modeling import inference, model
    sizes = inference_flags.sizes(trained, args.crop_augment)
    model.set_precision(args.mixed_precision)
    with strategy.scope():
        network, checkpoint = inference.from_experiment(args.experiment_root, args.checkpoint, sizes.net,
                                                        args.weights)
    if not args.quiet:
        print(f'Embedding {len(dataset)} images of {args.dataset} with {checkpoint}.')

    # Embed. An interrupted embedding keeps its rows, and --resume goes on behind them.
    parameters = {**vars(args), 'resume': None, 'quiet': None, 'loading_threads': None, 'distribute': None,
                  'devices': None, 'image_root': image_root, 'checkpoint': os.path.basename(checkpoint),
                  'checkpoint_sha256': provenance.file_hash(checkpoints.index_file(checkpoint))}
    traces = {'versions': provenance.versions(), 'dataset_sha256': provenance.file_hash(args.dataset)}
    variant_names = augmentation.variant_names(args.flip_augment, args.crop_augment)
    rows = dataset.first_frames() if args.pool_tracklets else dataset
    with EmbeddingWriter(filename, rows, trained.embedding_dim, variant_names, parameters, traces, args.resume,
                         pooled=bool(args.pool_tracklets)) as writer:
        if args.resume and not args.quiet:
            print(f'Going on behind {writer.rows_done} rows that are there already.')
        with signals.undone(lambda: tell_how_to_go_on(writer)):
            write_embeddings(writer, dataset, image_root, network, sizes.load, strategy, args)
    if not args.quiet:
        print(f'Saved {filename}.')


def tell_how_to_go_on(writer):
    """Say what becomes of an embedding that a signal ends; not by `print`, which the signal may have come upon."""
    if writer.rows_done:
        os.write(2, f'\nInterrupted. {writer.rows_done} of {len(writer)} rows are kept: go on with --resume.\n'.encode())


def without_broken_images(dataset, image_root, filename, args):
    """The `Dataset` without images that cannot be read, which are listed beside the embeddings; csv files of both."""
    from reid.dataset import save_dataset
    from reid.input_pipeline import images
    stem = os.path.splitext(filename)[0]
    readable = images.without_broken(dataset, image_root, f'{stem}_broken.csv', args.resume,
                                     lambda sentence: print(sentence, file=sys.stderr))
    if len(readable) < len(dataset):
        save_dataset(f'{stem}.csv', readable)
        print(f'{len(dataset) - len(readable)} broken images are left out: evaluate with {stem}.csv instead of '
              f'{args.dataset}.', file=sys.stderr)
    return readable


def write_embeddings(writer, dataset, image_root, network, load_size, strategy, args):
    """Embed the images of the rows that an `EmbeddingWriter` lacks, and write them: aggregated, pooled, with a bar."""
    import tqdm

    from reid.modeling import inference
    of_rows = inference.embed_rows(
        network, dataset, image_root, load_size, args.aggregator, bool(args.pool_tracklets), writer.rows_done,
        batch_size=args.batch_size, loading_threads=args.loading_threads, flip=args.flip_augment,
        crop=args.crop_augment, strategy=strategy)
    with tqdm.tqdm(total=len(writer), initial=writer.rows_done, unit=' rows', disable=args.quiet) as bar:
        for embs in of_rows:
            writer.append(embs[0], embs[1:])
            bar.update(embs.shape[1])


def check_lists_beside(filename, dataset):
    """Check that the csv files of --skip_broken_images, beside the .h5 file to write, are not there or belong to it."""
    from reid.embeddings import unfinished
    stem = os.path.splitext(filename)[0]
    is_made_anew = os.path.exists(filename) or os.path.exists(unfinished(filename))
    for path in (f'{stem}.csv', f'{stem}_broken.csv'):
        check_output(path, '--filename', f'a list of images beside {filename}', lambda path: is_made_anew, [dataset])


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')

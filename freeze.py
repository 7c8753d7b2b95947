#!/usr/bin/env python3
"""Take a trained model elsewhere: export a checkpoint as SavedModel, TFLite, ONNX or frozen graph, and time that."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import argparse
import os
import time

from tripletreid import argument_types, plugins, quiet
from tripletreid.errors import InputError, exit_with
from tripletreid.experiment import arguments, train_flags
from tripletreid.files import temporary_folder
from tripletreid.modeling import exports, inference_flags

TOLERANCE = 1e-4
CHECKED_IMAGES = 16
# Without an args.json to tell what the model is, flags do; these are the original's defaults of them, and the net's own.
MODEL_FLAGS = {'model_name': 'resnet_v1_50', 'head_name': 'fc1024_normalize', 'embedding_dim': 128,
               'net_input_height': 256, 'net_input_width': 128, **dict.fromkeys(train_flags.NET_OPTIONS)}
# What counts when exports are only timed: which, and the size of images for those that take any.
LOAD_FLAGS = {'load', 'benchmark', 'batch_size', 'runs', 'frozen_model_path', 'experiment_root', 'checkpoint_name',
              'net_input_height', 'net_input_width'}


def make_parser():
    """The parser of freeze.py's command line."""
    parser = argument_types.ArgumentParser(
        description=__doc__, usage='%(prog)s --experiment_root DIR [more flags]\n'
                                   '       %(prog)s --describe CHECKPOINT',
        example='python freeze.py --experiment_root runs/first --any_size --frozen_model_path model.tflite \\\n'
                '    --check_dataset data/folder_query.csv\n'
                'python freeze.py --describe runs/first')
    model = parser.add_argument_group('the model')
    source = model.add_mutually_exclusive_group()
    source.add_argument('--experiment_root', metavar='DIR', help='where the training run is kept')
    source.add_argument('--checkpoint_name', metavar='PATH', help='or a checkpoint; an args.json beside it says what '
                        'the model is, without one the flags up to --pixels do')
    source.add_argument('--describe', metavar='CHECKPOINT', help="an experiment root, one of its checkpoints, or a file "
                        "of TF-Slim's: only list what it holds and which net and head it fits")
    add = model.add_argument
    add('--model_name', choices=plugins.choices('nets'), help=f'({MODEL_FLAGS["model_name"]})')
    add('--head_name', choices=plugins.choices('heads'), help=f'({MODEL_FLAGS["head_name"]})')
    add('--embedding_dim', type=argument_types.dimensions, metavar='D', help=f'({MODEL_FLAGS["embedding_dim"]})')
    add('--net_input_height', type=argument_types.side, metavar='H', help=f'({MODEL_FLAGS["net_input_height"]})')
    add('--net_input_width', type=argument_types.side, metavar='W', help=f'({MODEL_FLAGS["net_input_width"]})')
    train_flags.add_net_options(add)
    add('--checkpoint', metavar='NAME', needs='--experiment_root',
        help='name of a checkpoint in the experiment root (the last one)')
    inference_flags.add_weights(add)

    add = parser.add_argument_group('the export').add_argument
    add('--frozen_model_path', nargs='+', metavar='PATH', help='what to write: .tflite, .onnx and .pb (a frozen graph) '
        'are files, a path without an ending is a SavedModel folder (frozen, beside the checkpoint)')
    add('--input_dtype', choices=('float32', 'uint8'), default='float32', help='of the images (%(default)s)')
    add('--any_size', action='store_true', help='take images of any size and resize them inside')
    inference_flags.add_flags(add)
    add('--check_dataset', metavar='CSV', help=f'the export must embed the first {CHECKED_IMAGES} images of this csv '
        'file as embed.py does (generated images)')
    add('--image_root', metavar='DIR', needs='--check_dataset',
        help='folder that its paths are relative to (that of the training run)')
    add('--save_graph', action='store_true', help="write the graph for TensorBoard as well, to the folder logs")

    add = parser.add_argument_group('speed').add_argument
    add('--benchmark', action='store_true', help='time the exports')
    add('--load', action='store_true', help='only time exports that are there already')
    add('--batch_size', type=argument_types.positive_int, nargs='+', default=[16], metavar='B',
        needs='--benchmark or --load', help='images at a time, one number or several (16)')
    add('--runs', type=argument_types.positive_int, default=100, metavar='N', needs='--benchmark or --load',
        help='batches to time (%(default)s)')
    return parser


def check(args, root, parser):
    """Check what one argument alone cannot tell; ends through `parser.error`.

    Args:
        args: as parsed.
        root: of the experiment, or None; see `experiment_of`.
        parser: of the command line.
    """
    refuse_given, flags = argument_types.refuse_given, set(vars(args))
    if args.describe:
        return refuse_given(parser, flags - {'describe'}, '--describe only lists what a checkpoint holds')
    if not (args.experiment_root or args.checkpoint_name or args.load):
        parser.error('name an --experiment_root or a --checkpoint_name')
    if args.load:
        refuse_given(parser, flags - LOAD_FLAGS, '--load only times exports that are there already')
        if not (args.frozen_model_path or args.experiment_root or args.checkpoint_name):
            parser.error('--load needs to know what: name a --frozen_model_path')
    of_model = [name for name in MODEL_FLAGS if getattr(args, name) is not None]
    if of_model and args.experiment_root:
        parser.error(f'--{of_model[0]} is for a --checkpoint_name alone: an --experiment_root has its args.json')
    if args.crop_augment and not root:
        parser.error('--crop_augment needs the pre-crop size of an --experiment_root')
    parser.check(args)
    if args.check_dataset and not (args.image_root or root):
        parser.error('--check_dataset needs an --image_root')


def main():
    parser = make_parser()
    args = parser.parse_args()
    root, checkpoint = experiment_of(args)
    check(args, root, parser)
    if args.describe:
        with quiet.tensorflow_import():
            from tripletreid.modeling import inspect_checkpoint
        for line in inspect_checkpoint.describe(args.describe):
            print(line)
        return
    trained = arguments_of(args, root)
    sizes = inference_flags.sizes(trained, args.crop_augment)
    if args.any_size and sizes.pixels.resize != 'tf1':
        raise InputError(f'--any_size resizes inside of the export as --resize tf1 does, but this model was trained with '
                         f'--resize {sizes.pixels.resize}: export without --any_size and resize images with Pillow.')

    # Where the exports go, or are.
    targets = args.frozen_model_path or [os.path.join(root or os.path.dirname(args.checkpoint_name), 'frozen')]
    for path in targets:
        exports.format_of(path)
        if not args.load:
            exports.check_writable(path, [args.check_dataset])

    if not args.load:
        export(args, trained, root, checkpoint, sizes, targets)

    # Speed, on images of the size that was exported.
    if args.benchmark or args.load:
        with quiet.tensorflow_import():
            import tensorflow  # noqa: F401
        for path in targets:
            loaded = exports.load(path)
            for batch_size in args.batch_size:
                seconds = seconds_per_batch(loaded, batch_size, sizes.load, args.runs)
                print(f'{path}: {seconds * 1000:.2f} ms for {batch_size} images, {batch_size / seconds:.1f} images/s '
                      f'(median of {args.runs} runs)')


def experiment_of(args):
    """The experiment that the model is of.

    Returns: (root, checkpoint): of --experiment_root, or the folder and name of a --checkpoint_name with an args.json
        beside it; (None, None) for a checkpoint alone. As `inference.from_experiment` takes them.
    """
    if args.checkpoint_name:
        is_folder = os.path.isdir(args.checkpoint_name)
        folder, name = (args.checkpoint_name, '') if is_folder else os.path.split(args.checkpoint_name)
        if os.path.isfile(os.path.join(folder, arguments.FILE)):
            return folder or '.', name
    return args.experiment_root, args.checkpoint


def arguments_of(args, root):
    """What the model was trained with, an argparse.Namespace: by the args.json of a root, or by MODEL_FLAGS.

    Raises:
        InputError: no args.json, or flags that contradict it.
    """
    if not root:
        return argparse.Namespace(**{name: default if getattr(args, name) is None else getattr(args, name)
                                     for name, default in MODEL_FLAGS.items()})
    trained, _ = arguments.load(root)
    for name in MODEL_FLAGS:
        if getattr(args, name) not in (None, getattr(trained, name)):
            raise InputError(f'--{name} {getattr(args, name)} is not what {os.path.join(root, arguments.FILE)} has '
                             f'({getattr(trained, name)}), beside the checkpoint: leave the flag out.')
    return trained


def export(args, trained, root, checkpoint, sizes, targets):
    """Write exports; each takes its name once it has embedded some images as embed.py does.

    Args:
        args: as parsed.
        trained: as `arguments_of` gives it.
        root, checkpoint: as `experiment_of` gives them.
        sizes: `inference_flags.Sizes`.
        targets: paths, a list.
    """
    paths = []
    if args.check_dataset:
        from tripletreid.dataset import load_dataset
        from tripletreid.image_root import check_files, image_path
        dataset = load_dataset(args.check_dataset).take(slice(CHECKED_IMAGES))
        image_root = args.image_root or arguments.stored_image_root(root, trained)
        check_files(dataset, image_root)
        paths = [image_path(image_root, fid) for fid in dataset.fids]
    with quiet.tensorflow_import():
        import tensorflow as tf
    from tripletreid.experiment import checkpoints
    from tripletreid.modeling import inference, model
    # Within 1e-4 of the other formats, which have no such thing as a GPU's multiplication with 10 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)

    # The network to export, and what it is compared with:
    # 1. of an experiment, embed.py's own way from args.json to embeddings, the network built anew;
    # 2. of a checkpoint alone there is no other way than these flags. That an export embeds as its network proves that
    #    the file is right; that the network is, no more than the variables tell: all of them are used, none is left.
    #    What has no variable (strides, the size of images, a normalisation) is the user's word, and said.
    network = model.build_for(trained, sizes.net)
    if root:
        reference, path = inference.from_experiment(root, checkpoint, sizes.net, args.weights)
        compared_with = 'embed.py'
    else:
        reference, path = network, checkpoints.find(args.checkpoint_name)
        compared_with = 'the network of these flags'
    variables = model.named_variables(network)
    checkpoints.load_weights(path, variables, args.weights)
    print(f'Exporting {path}.')
    if not root:
        check_all_used(path, variables)
        flags = [f'--{name} {value}' for name, value in vars(trained).items() if value is not None]
        print(f'No {arguments.FILE} is beside it, so it is taken for a model of {" ".join(flags)}, and the '
              f"net's defaults for the rest.")

    module = embedder(network, sizes.load, args)
    with temporary_folder() as folder:
        paths = paths or generated_images(folder, sizes.load)
        batches, expected = what_embed_gives(reference, paths, sizes, args)
    for path in targets:
        with exports.written(path, module) as written:
            difference = max_difference(written, batches, expected, compared_with)
        print(f'Saved {path} ({exports.format_of(path).name}): it differs from {compared_with} by {difference:.1e} at '
              f'most on {len(expected)} images, with embeddings up to {abs(expected).max():.3g}.')
    if args.save_graph:
        with tf.summary.create_file_writer('logs').as_default():
            tf.summary.graph(module.embed.get_concrete_function().graph)


def check_all_used(path, variables):
    """Raises InputError when a checkpoint holds variables of a net or a head beside those that are given."""
    from tripletreid.modeling import pretrained
    unused = pretrained.unused(path, variables)
    if unused:
        raise InputError(f'{path} holds {pretrained.listed(unused)}, which a model of these flags does not have: say '
                         f'what it was trained with by --model_name, --head_name, --pooling and so on.')


def embedder(network, load_size, args):
    """The network with all that embed.py does around it, as one function.

    Args:
        network: as `model.build` gives it.
        load_size: (height, width) of the images before they are cropped.
        args: as parsed; any_size, input_dtype and the test-time augmentation count.

    Returns: tf.Module for `exports`: its `embed` takes images [B, *load_size, 3] (or with any_size [B, H, W, 3]) of RGB
        0..255 and gives {'emb': [B, D] float32}.
    """
    import tensorflow as tf

    from tripletreid.input_pipeline.augmentation import variants
    from tripletreid.input_pipeline.images import resize_batch
    input_size = network.input_shape[1:3]
    taken_size = (None, None) if args.any_size else load_size

    images_spec = tf.TensorSpec([None, *taken_size, 3], args.input_dtype, name='images')

    @tf.function(input_signature=[images_spec], autograph=False)
    def embed(images):
        images = tf.cast(images, tf.float32)
        if args.any_size:
            images = tf.ensure_shape(resize_batch(images, load_size), [None, *load_size, 3])
        augmented = variants(images, args.flip_augment, args.crop_augment, input_size)  # [A, B, H, W, 3]
        embs = network(tf.reshape(augmented, [-1, *input_size, 3]), training=False)['emb']
        embs = tf.reshape(embs, [augmented.shape[0], -1, embs.shape[-1]])
        emb = tf.reduce_mean(embs, axis=0)
        if args.aggregator == 'normalized_mean':
            lengths = tf.norm(emb, axis=-1, keepdims=True)
            emb /= tf.where(lengths > 0, lengths, 1)
        return {'emb': emb}

    module = tf.Module()
    module.weights, module.embed = [variable.value for variable in network.variables], embed
    return module


def generated_images(folder, size):
    """Write images of colours and noise, each of its own size from `size` to twice that; returns their paths."""
    import numpy as np
    from PIL import Image
    random = np.random.default_rng(0)
    paths = [os.path.join(folder, f'{number}.png') for number in range(CHECKED_IMAGES)]
    for path in paths:
        height, width = (int(random.integers(side, 2 * side)) for side in size)
        colours = Image.fromarray(random.integers(0, 256, (4, 3, 3), np.uint8)).resize((width, height))
        noise = random.integers(-20, 21, (height, width, 3))
        Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8)).save(path)
    return paths


def what_embed_gives(network, paths, sizes, args):
    """Images as an export takes them, and what embed.py makes of their files.

    Returns: (batches, embs): arrays [B, H, W, 3] of the input_dtype, and [N, D] float32 of all their images in order.
    """
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from tripletreid.input_pipeline import images
    from tripletreid.modeling import inference
    from tripletreid.modeling.aggregators import AGGREGATORS
    with temporary_folder() as folder:
        if args.input_dtype == 'uint8' and not args.any_size:
            # To 8 bits only after the resizing: files of that size, so that embed.py sees the same.
            originals, paths = paths, [os.path.join(folder, f'{number}.png') for number in range(len(paths))]
            for original, path in zip(originals, paths):
                Image.fromarray(np.uint8(np.rint(images.load(original, sizes.load, sizes.pixels)))).save(path)
        embs = list(inference.embed_files(network, paths, sizes.load, flip=args.flip_augment, crop=args.crop_augment,
                                          pixels=sizes.pixels))
        if args.any_size:
            batches = [images.decode(tf.io.read_file(path), sizes.pixels.jpeg)[None] for path in paths]
        else:
            loaded = np.stack([images.load(path, sizes.load, sizes.pixels) for path in paths])
            batches = [loaded[:1], loaded[1:]]
    batches = [np.asarray(batch, args.input_dtype) for batch in batches if len(batch)]
    return batches, AGGREGATORS[args.aggregator or 'mean'](np.concatenate(embs, axis=1))


def max_difference(export, batches, expected, compared_with):
    """By how much the embeddings of an export differ from those expected, at most, of what `compared_with` names.

    Raises:
        InputError: by more than TOLERANCE, of the largest number in an embedding where that is above 1: more is not
            to be had from 24 bits.
    """
    import numpy as np
    embs = np.concatenate([export.embed(batch) for batch in batches])
    difference = abs(embs - expected).max()
    if not difference <= TOLERANCE * max(1, abs(expected).max()):
        raise InputError(f'The export differs from {compared_with} by up to {difference:.1e}, with embeddings up to '
                         f'{abs(expected).max():.3g}, so it is not kept.')
    return difference


def seconds_per_batch(export, batch_size, size, runs):
    """Median duration of embedding a batch of random images, after a first batch that does not count.

    Args:
        export: as `exports.load` gives it.
        size: (height, width) of the images, if the export takes any.
    """
    import numpy as np
    height, width = (taken or ours for taken, ours in zip(export.input_shape[1:3], size))
    batch = np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3)).astype(export.input_dtype)
    durations = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        export.embed(batch)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations[1:]))


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')

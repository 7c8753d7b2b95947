#!/usr/bin/env python3
"""Export a trained model as SavedModel, TFLite, ONNX or frozen graph with its model card, and measure its speed."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import argparse
import json
import os

from tripletreid import argument_types, plugins, quiet
from tripletreid.errors import InputError, exit_with, listed, warn
from tripletreid.experiment import arguments, net_flags, train_flags
from tripletreid.modeling import exports, inference_flags, quantization

CHECKED_IMAGES = 16
CALIBRATION_IMAGES = 200
# The original's defaults of the flags that describe a model without an args.json; the net's own defaults for its options.
MODEL_FLAGS = {'model_name': 'resnet_v1_50', 'head_name': 'fc1024_normalize', 'embedding_dim': 128,
               'net_input_height': 256, 'net_input_width': 128, **dict.fromkeys(train_flags.NET_OPTIONS)}
# The flags that have an effect when existing exports are only timed: which exports, and the size of images.
LOAD_FLAGS = {'load', 'benchmark', 'batch_size', 'runs', 'frozen_model_path', 'experiment_root', 'checkpoint_name',
              'net_input_height', 'net_input_width'}


def make_parser():
    """Return the parser of freeze.py's command line."""
    parser = argument_types.ArgumentParser(
        description=__doc__, usage='%(prog)s --experiment_root DIR [more flags]\n'
                                   '       %(prog)s --describe CHECKPOINT',
        example='python freeze.py --experiment_root runs/first --any_size --frozen_model_path model.tflite \\\n'
                '    --check_dataset data/folder_query.csv\n'
                'python freeze.py --experiment_root runs/first --frozen_model_path tracker.onnx --layout nchw \\\n'
                '    --pixels imagenet\n'
                'python freeze.py --describe runs/first')
    model = parser.add_argument_group('model')
    source = model.add_mutually_exclusive_group()
    source.add_argument('--experiment_root', metavar='DIR', help='folder of a training run or of an imported model')
    source.add_argument('--checkpoint_name', metavar='PATH', help='checkpoint in place of an experiment root; an '
                        'args.json next to it describes the model, or else the following flags do')
    source.add_argument('--describe', metavar='CHECKPOINT', help='list the content of an experiment root, of one of its '
                        "checkpoints or of a file of TF-Slim's, and the net and head that it fits; export nothing")
    add = model.add_argument
    add('--model_name', choices=plugins.choices('nets'), help=f'net (default: {MODEL_FLAGS["model_name"]})')
    add('--head_name', choices=plugins.choices('heads'), help=f'head (default: {MODEL_FLAGS["head_name"]})')
    add('--embedding_dim', type=argument_types.dimensions, metavar='D', help='dimensions of the embedding (default: '
        f'{MODEL_FLAGS["embedding_dim"]})')
    add('--net_input_height', type=argument_types.side, metavar='H', help='height of the images (default: '
        f'{MODEL_FLAGS["net_input_height"]})')
    add('--net_input_width', type=argument_types.side, metavar='W', help='width of the images (default: '
        f'{MODEL_FLAGS["net_input_width"]})')
    net_flags.add_flags(add)
    add('--checkpoint', metavar='NAME', needs='--experiment_root',
        help='name of a checkpoint in the experiment root (default: the newest)')
    inference_flags.add_weights(add)

    add = parser.add_argument_group('export').add_argument
    add('--frozen_model_path', nargs='+', metavar='PATH', help='exports to write: .tflite, .onnx and .pb (a frozen graph) '
        'are files, a path without an ending is a SavedModel folder (default: frozen, next to the checkpoint)')
    add('--input_dtype', choices=('float32', 'uint8'), default='float32', help='type of the images '
        '(default: %(default)s)')
    add('--layout', choices=('nhwc', 'nchw'), default='nhwc', help='order of the axes of the images; trackers use nchw. '
        'With an --experiment_root, --pixels means that the caller scales pixels so, instead of passing RGB 0..255 '
        '(default: %(default)s)')
    add('--any_size', action='store_true', help='take images of any size and resize them inside')
    inference_flags.add_flags(add)
    add('--like', metavar='JSON', needs='--experiment_root or --checkpoint_name', help='an evaluation of this checkpoint by '
        'evaluate.py: take over its test-time augmentation, and its scores and thresholds for the model card')
    add('--quantize', choices=quantization.CHOICES, needs={'int8': '--calibration'}, help='fewer bits: weights in 8 '
        '(dynamic) or 16 bits, or computation in 8 bits; for .tflite and .onnx')
    add('--calibration', metavar='CSV', needs='--quantize int8', help='csv file with images as in the application; '
        f'up to {CALIBRATION_IMAGES} determine the ranges of int8')
    add('--max_loss', type=argument_types.non_negative_float, metavar='POINTS', needs='--like', help='refuse an export '
        'whose mAP on the queries and the gallery of --like is more than so many points lower, e.g. 0.5')
    add('--check_dataset', metavar='CSV', help=f'csv file whose first {CHECKED_IMAGES} images the export must embed as '
        'embed.py does (default: generated images)')
    add('--image_root', metavar='DIR', needs='--check_dataset or --calibration',
        help="folder that the paths in these csv files are relative to (default: the training's)")
    add('--save_graph', action='store_true', help='also write the graph for TensorBoard to the folder logs')

    add = parser.add_argument_group('speed').add_argument
    add('--benchmark', action='store_true', help='measure the speed of the exports')
    add('--load', action='store_true', help='only measure the speed of existing exports')
    add('--batch_size', type=argument_types.positive_int, nargs='+', default=[16], metavar='B',
        needs='--benchmark or --load', help='images per batch, one number or several (default: 16)')
    add('--runs', type=argument_types.positive_int, default=100, metavar='N', needs='--benchmark or --load',
        help='timed batches (default: %(default)s)')
    return parser


def check(args, root, parser):
    """Check the arguments together; end through `parser.error`.

    Args:
        args: as parsed.
        root: of the experiment, or None; see `experiment_of`.
        parser: of the command line.
    """
    refuse_given, flags = argument_types.refuse_given, set(vars(args))
    if args.describe:
        return refuse_given(parser, flags - {'describe'}, '--describe only lists the content of a checkpoint')
    if not (args.experiment_root or args.checkpoint_name or args.load):
        parser.error('name an --experiment_root or a --checkpoint_name')
    if args.load:
        refuse_given(parser, flags - LOAD_FLAGS, '--load only times exports that are there already')
        if not (args.frozen_model_path or args.experiment_root or args.checkpoint_name):
            parser.error('--load needs exports: name a --frozen_model_path')
    parser.check(args)
    model_flags = [name for name in MODEL_FLAGS if getattr(args, name) is not None and name != 'pixels']
    if model_flags and args.experiment_root:
        parser.error(f'--{model_flags[0]} is for a --checkpoint_name alone: an --experiment_root has its args.json')
    if args.crop_augment and not root:
        parser.error('--crop_augment needs the pre-crop size of an --experiment_root')
    if args.pixels and args.experiment_root and args.input_dtype == 'uint8':
        parser.error('--pixels scales pixels to float32, so it contradicts --input_dtype uint8')
    if args.like and (args.flip_augment or args.crop_augment or args.aggregator):
        parser.error('--like takes the test-time augmentation from the evaluation, so no other can be given')
    if (args.check_dataset or args.calibration) and not (args.image_root or root):
        parser.error('--check_dataset and --calibration need an --image_root')


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

    # Where the exports go, or are.
    targets = args.frozen_model_path or [os.path.join(root or os.path.dirname(args.checkpoint_name), 'frozen')]
    for path in targets:
        exports.format_of(path, to_read=args.load)
        if not args.load:
            exports.check_writable(path, [args.check_dataset, args.calibration])
        if args.quantize:
            quantization.check(path, args.quantize)
    if not args.load:
        export(args, trained, root, checkpoint, targets)

    # Speed, on images of the size that was exported.
    if args.benchmark or args.load:
        with quiet.tensorflow_import():
            from tripletreid.modeling import export_check
        size = inference_flags.view(trained, args.crop_augment).load
        for path in targets:
            loaded = exports.load(path)
            for batch_size in args.batch_size:
                seconds = export_check.seconds_per_batch(loaded, batch_size, size, args.runs)
                print(f'{path}: {seconds * 1000:.2f} ms for {batch_size} images, {batch_size / seconds:.1f} images/s '
                      f'(median of {args.runs} runs)')


def experiment_of(args):
    """Return the experiment of the model, as `inference.from_experiment` takes it.

    Returns: (root, checkpoint): of --experiment_root, or the folder and name of a --checkpoint_name with an args.json
        next to it; (None, None) for a checkpoint alone.
    """
    if args.checkpoint_name:
        is_folder = os.path.isdir(args.checkpoint_name)
        folder, name = (args.checkpoint_name, '') if is_folder else os.path.split(args.checkpoint_name)
        if os.path.isfile(os.path.join(folder, arguments.FILE)):
            return folder or '.', name or None
    return args.experiment_root, args.checkpoint


def arguments_of(args, root):
    """Return train.py's arguments of the model, an argparse.Namespace: from the args.json of a root, or from MODEL_FLAGS.

    Raises:
        InputError: no args.json, or flags that contradict it.
    """
    if not root:
        return argparse.Namespace(**{name: default if getattr(args, name) is None else getattr(args, name)
                                     for name, default in MODEL_FLAGS.items()})
    trained, _ = arguments.load(root)
    for name in MODEL_FLAGS:
        if getattr(args, name) not in (None, getattr(trained, name)) and not (name == 'pixels' and args.experiment_root):
            raise InputError(f'--{name} {getattr(args, name)} contradicts {os.path.join(root, arguments.FILE)} '
                             f'({getattr(trained, name)}) next to the checkpoint: remove the flag.')
    return trained


def export(args, trained, root, checkpoint, targets):
    """Write exports with their cards; each gets its name after it has embedded some images as embed.py does.

    Args:
        args: as parsed.
        trained: as `arguments_of` returns it.
        root, checkpoint: as `experiment_of` returns them.
        targets: paths, a list.
    """
    paths, calibration_paths = (image_paths(args, trained, root, *each) for each in (
        (args.check_dataset, CHECKED_IMAGES), (args.calibration, CALIBRATION_IMAGES, True)))
    paths = paths or calibration_paths[:CHECKED_IMAGES]
    with quiet.tensorflow_import():
        import tensorflow as tf
    from tripletreid.experiment import checkpoints
    from tripletreid.modeling import export_check, export_loss, export_module, exported_model, inference, model, model_card
    # Within 1e-4 of the other formats, which do not have a GPU's multiplication with 10 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    path = checkpoints.find_in_root(root, checkpoint) if root else checkpoints.find(args.checkpoint_name)
    evaluation = take_over_evaluation(args, path) if args.like else None
    if args.max_loss is not None:
        export_loss.check_protocol(evaluation)
    augmentation = {name: getattr(args, name) for name in model_card.TEST_TIME}
    view = inference_flags.view(trained, args.crop_augment, args.flip_augment)
    interface = export_module.Interface(args.input_dtype, args.layout, args.pixels if args.experiment_root else None,
                                        args.any_size)
    if args.any_size and args.quantize == 'int8':
        raise InputError('--any_size resizes in float32: --quantize int8 is for images of one size.')
    if args.any_size and view.pixels.resize != 'tf1':
        raise InputError(f'--any_size resizes inside of the export as --resize tf1 does, but this model was trained with '
                         f'--resize {view.pixels.resize}: export without --any_size and resize images with Pillow.')

    # The network to export, and its reference:
    # 1. of an experiment, embed.py's own way from args.json to embeddings, the network built a second time;
    # 2. of a checkpoint alone there is no other way than these flags. An export that embeds like its network shows that the
    #    file is right. That the network is right shows only in its variables: all of them are used, and none remains.
    #    Strides, the size of images and a normalisation have no variable; they are the user's word, and printed.
    network = model.build_for(trained, view.net)
    reference = inference.from_experiment(root, checkpoint, view.net, args.weights)[0] if root else network
    compared_with = 'embed.py' if root else 'the network of these flags'
    variables = model.named_variables(network)
    checkpoints.load_weights(path, variables, args.weights)
    print(f'Exporting {path}{arguments.import_note(trained) if root else ""}.')
    if root:
        warn_of_other_augmentation(args, trained, root, path, augmentation)
    else:
        check_all_used(path, variables)
        flags = [f'--{name} {value}' for name, value in vars(trained).items() if value is not None]
        print(f'No {arguments.FILE} is next to it, so it is taken for a model of {" ".join(flags)}, and the '
              f"net's defaults for the rest.")

    card = {**model_card.describe(trained, path, view, interface, augmentation, evaluation), 'quantization': args.quantize}
    quantize = args.quantize and quantization.Quantization(
        args.quantize, export_check.load_batches(calibration_paths, view, interface))
    module = export_module.embedder(network, view, interface, args.aggregator)
    batches, expected = export_check.references(reference, paths, view, interface, args.aggregator)
    for target in targets:
        with exports.written(target, module, {exports.CARD_KEY: json.dumps(card)}, quantize) as written:
            if quantize:
                found = quantization.loss_in_words(export_check.embeddings(written, batches), expected)
            else:
                difference = export_check.max_difference(
                    written, batches, expected, compared_with, lambda: export_check.sensitivity(reference, paths, view))
                found = (f'it differs from {compared_with} by {difference:.1e} at most on {len(expected)} images, with '
                         f'embeddings up to {abs(expected).max():.3g}')
            if args.max_loss is not None:
                named = exported_model.ExportedModel.from_card(target, written, card)
                found += f'; {export_loss.check(named, evaluation, args.max_loss)}'
        model_card.write(target, card)
        print(f'Saved {target} ({exports.format_of(target).name}): {found}.')
    if args.save_graph:
        with tf.summary.create_file_writer('logs').as_default():
            tf.summary.graph(module.embed.get_concrete_function().graph)


def image_paths(args, trained, root, path, count, evenly=False):
    """Return the paths of `count` images of a csv file, the first ones or evenly spaced ones; an empty list without one."""
    if not path:
        return []
    from tripletreid.dataset import load_dataset
    from tripletreid.image_root import check_files, image_path
    dataset = load_dataset(path)
    dataset = dataset.take(slice(0, None, max(1, len(dataset) // count))) if evenly else dataset
    dataset = dataset.take(slice(count))
    image_root = args.image_root or arguments.stored_image_root(root, trained)
    check_files(dataset, image_root)
    return [image_path(image_root, fid) for fid in dataset.fids]


def take_over_evaluation(args, checkpoint):
    """Set the flags of test-time augmentation as the evaluation --like has them; return the evaluation."""
    from tripletreid.modeling import model_card
    evaluation, augmentation = model_card.evaluation_of(args.like, checkpoint)
    vars(args).update(augmentation)
    print(f'As {args.like}: test-time augmentation {model_card.flags_of(augmentation)}.')
    return evaluation


def warn_of_other_augmentation(args, trained, root, checkpoint, augmentation):
    """Warn where evaluations of the checkpoint, or else its validation, had other test-time augmentation than the export."""
    from tripletreid.modeling import model_card
    ours = model_card.flags_of(augmentation)
    if args.like:
        return
    for path in model_card.differing_evaluations(root, checkpoint, augmentation):
        warn(f'{path} evaluates this checkpoint with other test-time augmentation than this export ({ours}), so its scores '
             f'and thresholds are not for this export; --like {path} takes it over.')
    validation = model_card.validation_augmentation(trained)
    if getattr(trained, 'eval_frequency', 0) and validation != augmentation:
        warn(f'Validation while training embedded with test-time augmentation {model_card.flags_of(validation)}, this '
             f'export with {ours}.')


def check_all_used(path, variables):
    """Raise InputError when a checkpoint holds more variables of a net or a head than the given ones."""
    from tripletreid.modeling import pretrained
    unused = pretrained.unused(path, variables)
    if unused:
        raise InputError(f'{path} holds {listed(unused)}, which a model of these flags does not have: '
                         f'describe the trained model by --model_name, --head_name, --pooling and so on.')


if __name__ == '__main__':
    exit_with(main, lower='--batch_size')

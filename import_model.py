#!/usr/bin/env python3
"""Make an experiment root of published weights, which embed.py, search.py, freeze.py and train.py take like any other."""
if __name__ == '__main__':  # Before all other imports.
    from tripletreid import startup
    startup.settle()

import os

from tripletreid import argument_types, plugins, quiet, signals
from tripletreid.errors import InputError, exit_with, listed
from tripletreid.experiment import arguments, net_flags, root, train_flags
from tripletreid.metrics import METRICS

# The flags of train.py that determine how a model embeds.
FLAGS = ('model_name', 'head_name', 'embedding_dim', 'net_input_height', 'net_input_width', 'resize', 'jpeg', 'metric',
         *train_flags.NET_OPTIONS)
# Flags that are printed even if the file does not imply them, with their defaults.
ALWAYS_PRINTED = ('net_input_height', 'net_input_width', 'resize', 'jpeg', 'metric')


def make_parser():
    """Return the parser of import_model.py's command line."""
    parser = argument_types.ArgumentParser(
        description='Make an experiment root of published weights, with their head, size, pixels and metric.',
        usage='%(prog)s WEIGHTS --experiment_root DIR [more flags]',
        example='python import_model.py osnet_x0_25_msmt17.safetensors --experiment_root models/osnet\n'
                'python embed.py --experiment_root models/osnet --dataset photos.csv --image_root photos')
    add = parser.add_argument_group('required').add_argument
    add('weights', metavar='WEIGHTS', help='file of weights: .safetensors, .npz, .h5 or a TensorFlow checkpoint; for a file '
        'of PyTorch, the lines that convert it are printed')
    add('--experiment_root', required=True, metavar='DIR', help='folder to make')

    add = parser.add_argument_group('instead of the settings of the file').add_argument
    add('--origin', choices=plugins.choices('origins'), help='code base that the weights come from')
    add('--model_name', choices=plugins.choices('nets'), help='net')
    add('--head_name', choices=plugins.choices('heads'), help='head; features skips the head of the file')
    add('--net_input_height', type=argument_types.side, metavar='H', help='height of the images')
    add('--net_input_width', type=argument_types.side, metavar='W', help='width of the images')
    net_flags.add_flags(add)
    add('--resize', choices=('tf1', 'bilinear', 'bicubic'), help='resizing of images')
    add('--jpeg', choices=('fast', 'accurate'), help='JPEG decoder')
    add('--metric', choices=METRICS, help='metric that compares the embeddings')
    return parser


def main():
    args = make_parser().parse_args()
    if not os.path.exists(args.weights) and not os.path.exists(f'{args.weights}.index'):
        raise InputError(f'There is no file of weights {args.weights}.')
    if os.path.isdir(args.experiment_root) and os.listdir(args.experiment_root):
        raise InputError(f'The experiment root {args.experiment_root} is not empty: name a folder to make.')
    root.check_new(args.experiment_root)
    with quiet.tensorflow_import():
        from tripletreid.modeling import importing, model
    from tripletreid.experiment import checkpoints

    # The settings that the file implies, and the network with its weights. Nothing is written before both are complete.
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name, None) is not None}
    plan = importing.plan(args.weights, given, args.origin)
    stored = arguments_of_root(args, plan)
    network, unused = importing.load(plan, stored)

    # The root.
    root.create(args.experiment_root)
    with root.locked(args.experiment_root), signals.undone(lambda: root.remove_unstarted_root(args.experiment_root)):
        try:
            arguments.save(stored)
            root.record_start(args.experiment_root, stored, [weights_file(args.weights)])
            checkpoints.save(args.experiment_root, 0, model.named_variables(network))
        except BaseException:
            root.remove_unstarted_root(args.experiment_root)
            raise
    for line in description(plan, stored, unused):
        print(line)
    print(f'Saved {args.experiment_root}. Embed images with it:\n'
          f'    python embed.py --experiment_root {args.experiment_root} --dataset CSV --image_root DIR')


def arguments_of_root(args, plan):
    """Return train.py's arguments for an imported model; no training set marks a root that was never trained."""
    flags = [f'--{name}={value}' for name, value in plan.values().items()]
    stored = train_flags.make_parser().parse_args(['--experiment_root', args.experiment_root, *flags])
    stored.initial_checkpoint = os.path.abspath(args.weights)
    return stored


def weights_file(path):
    """Return the file of weights whose hash is recorded; of a TensorFlow checkpoint the index."""
    from tripletreid.experiment import checkpoints
    return path if os.path.isfile(path) else checkpoints.index_file(checkpoints.find(path))


def description(plan, stored, unused):
    """Describe an imported model in lines of text.

    Args:
        plan: `importing.Plan`.
        stored: train.py's arguments of the new root.
        unused: names of arrays of the file that are not used.
    """
    lines = [f'{plan.path}: {plan.kind}']
    for name in FLAGS:
        if name in plan.settings:
            lines.append(f'  --{name} {plan.settings[name].value} ({plan.settings[name].reason})')
        elif name in ALWAYS_PRINTED:
            lines.append(f'  --{name} {getattr(stored, name)} (default)')
    return lines + ([f'  not used: {listed(unused)}'] if unused else [])


if __name__ == '__main__':
    exit_with(main)

"""The parameters of a training run: `train.py`'s flags, from the command line or from an experiment's args.json.

What args.json holds goes through the very parser of the command line, so that both mean the same and neither can name
a net, a head or a number that the other could not.
"""
import argparse
import json
import os

import plugins
from errors import InputError
from files import write_json
from ranking import METRICS

FILE = 'args.json'
# These belong to one start of a run and not to the run.
OF_ONE_START = ('experiment_root', 'resume')


def positive_int(text):
    """An int of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not 1 or more')
    return number


def non_negative_int(text):
    """An int of 0 or more, for argparse."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{text} is not 0 or more')
    return number


def positive_float(text):
    """A finite number above 0, for argparse."""
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a number above 0')
    return number


def margin(text):
    """A finite number as float, 'soft' or 'none', for argparse."""
    if text in ('soft', 'none'):
        return text
    try:
        number = float(text)
    except ValueError:
        number = float('nan')
    if not abs(number) < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is none of: a number, soft, none')
    return number


def make_parser():
    """The parser of train.py's command line."""
    parser = argparse.ArgumentParser(description='Train an embedding with the triplet loss.', allow_abbrev=False)
    add = parser.add_argument
    add('--experiment_root', required=True, metavar='DIR', help='where the run is kept: args.json, checkpoints, logs')
    add('--resume', action='store_true', help='go on with the run in the experiment root; everything else is loaded '
        'from its args.json')

    data = parser.add_argument_group('data')
    add = data.add_argument
    add('--train_set', metavar='CSV', help='csv file: identity,relative/path.jpg per line')
    add('--image_root', metavar='DIR', help='folder that the paths in the csv file are relative to')
    add('--batch_p', type=positive_int, default=32, metavar='P', help='identities in a batch (%(default)s)')
    add('--batch_k', type=positive_int, default=4, metavar='K', help='images of each identity (%(default)s)')
    add('--net_input_height', type=positive_int, default=256, metavar='H', help='(%(default)s)')
    add('--net_input_width', type=positive_int, default=128, metavar='W', help='(%(default)s)')
    add('--pre_crop_height', type=positive_int, default=288, metavar='H', help='with crop augmentation (%(default)s)')
    add('--pre_crop_width', type=positive_int, default=144, metavar='W', help='with crop augmentation (%(default)s)')
    add('--flip_augment', action='store_true', help='mirror images at random')
    add('--crop_augment', action='store_true', help='load images at the pre-crop size, then crop at random')
    add('--loading_threads', type=positive_int, default=8, help='images loaded at a time (%(default)s)')
    add('--allow_outside_root', action='store_true', help='also read images that lie outside of the image root')

    net = parser.add_argument_group('net')
    add = net.add_argument
    add('--model_name', default='resnet_v1_50', choices=plugins.choices('nets'), help='(%(default)s)')
    add('--head_name', default='fc1024', choices=plugins.choices('heads'), help='(%(default)s)')
    add('--embedding_dim', type=positive_int, default=128, metavar='D', help='(%(default)s)')
    add('--initial_checkpoint', metavar='FILE', help="pre-trained weights of the net's body")

    loss = parser.add_argument_group('loss and optimisation')
    add = loss.add_argument
    add('--loss', default='batch_hard', choices=plugins.choices('losses'), help='(%(default)s)')
    add('--margin', type=margin, default='soft', help='a number, soft or none (%(default)s)')
    add('--metric', default='euclidean', choices=METRICS, help='(%(default)s)')
    add('--learning_rate', type=positive_float, default=3e-4, help='(%(default)s)')
    add('--train_iterations', type=positive_int, default=25000, help='(%(default)s)')
    add('--decay_start_iteration', type=int, default=15000, help='when the learning rate starts to decay; -1: never '
        '(%(default)s)')

    run = parser.add_argument_group('run')
    add = run.add_argument
    add('--checkpoint_frequency', type=non_negative_int, default=1000, metavar='N', help='iterations between '
        'checkpoints; 0: only the final one (%(default)s)')
    add('--summary_frequency', type=positive_int, default=1, metavar='N', help='iterations between histograms in '
        'TensorBoard (%(default)s)')
    add('--detailed_logs', action='store_true', help='keep embeddings, losses and file ids of every batch as .npy')
    add('--seed', type=non_negative_int, default=0, help='of the initialisation, the batches and their augmentation '
        '(%(default)s)')
    add('--deterministic', action='store_true', help="TensorFlow's op determinism: the same run twice gives the same "
        'bits, at some cost in speed')
    return parser


def given_on_command_line(parser, argv=None):
    """Names of the arguments that the command line sets, whatever their values; a set."""
    absent = object()
    untouched = {name: absent for name in vars(parser.parse_args(argv))}
    given = parser.parse_args(argv, argparse.Namespace(**untouched))
    return {name for name, value in vars(given).items() if value is not absent}


def check(args, parser):
    """Check what one argument alone cannot tell; ends through `parser.error`."""
    if not args.train_set or not args.image_root:
        parser.error('--train_set and --image_root are needed, unless --resume loads them')
    if args.batch_k < 2:
        parser.error('--batch_k must be 2 or more: without a second image an anchor has no positive')
    if args.batch_p < 2:
        parser.error('--batch_p must be 2 or more: without a second identity an anchor has no negative')
    crop_fits = args.net_input_height <= args.pre_crop_height and args.net_input_width <= args.pre_crop_width
    if args.crop_augment and not crop_fits:
        parser.error(f'with --crop_augment the net input ({args.net_input_height}x{args.net_input_width}) must not be '
                     f'larger than the pre-crop size ({args.pre_crop_height}x{args.pre_crop_width})')


def load(root):
    """Read an experiment's args.json.

    Returns: (args, stored): the arguments as `train.py` would have parsed them, with defaults for what the file lacks,
        and the file's own content as a dict.

    Raises:
        InputError: no such file, no JSON object, or a value that the command line would refuse.
    """
    path = os.path.join(root, FILE)
    if not os.path.isdir(root):
        raise InputError(f'There is no experiment root {root}.')
    if not os.path.isfile(path):
        raise InputError(f'{root} has no {FILE}, so it is not an experiment root.')
    try:
        with open(path, encoding='utf-8') as file:
            stored = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not valid JSON ({error}).') from error
    if not isinstance(stored, dict):
        raise InputError(f'{path} does not hold a JSON object of arguments.')
    parser = make_parser()
    known = vars(parser.parse_args(['--experiment_root', root]))

    def refuse(message):
        raise InputError(f'{path}: {message}.')

    parser.error = refuse
    argv = ['--experiment_root', root]
    for name in known:
        if name in stored and name not in OF_ONE_START:
            argv += _as_flag(name, stored[name], is_switch=isinstance(known[name], bool), refuse=refuse)
    return parser.parse_args(argv), stored


def save(args):
    """Write the parameters of a run to its args.json; what is there and not known here stays.

    Args:
        args: as parsed, with `experiment_root`.
    """
    path = os.path.join(args.experiment_root, FILE)
    kept = {}
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
            kept = json.load(file)
    write_json(path, {**vars(args), **kept})


def merge_with_stored(args, given):
    """The parameters of a run to be resumed.

    Args:
        args: as parsed from the command line.
        given: names of the arguments that the command line really sets.

    Returns: (args, notices): what args.json holds, or the command line where that lacks an argument; and what the user
        should know about it, a list of sentences.
    """
    merged, stored = load(args.experiment_root)
    notices, defaults_used = [], []
    for name, value in vars(args).items():
        if name in OF_ONE_START:
            setattr(merged, name, value)
        elif name not in stored and name in given:
            setattr(merged, name, value)
            notices.append(f'{FILE} lacks the argument {name}: using the given {value!r}.')
        elif name not in stored:
            defaults_used.append(name)
        elif name in given and value != getattr(merged, name):
            notices.append(f'The argument {name} was given as {value!r}, but the run to be resumed has '
                           f'{getattr(merged, name)!r}: using that.')
    if defaults_used:
        notices.append(f'{FILE} lacks {", ".join(defaults_used)}: using the defaults.')
    unknown = sorted(set(stored) - set(vars(args)))
    if unknown:
        notices.append(f'{FILE} holds arguments that are not known here and not used: {", ".join(unknown)}.')
    return merged, notices


def _as_flag(name, value, is_switch, refuse):
    """An argument of args.json as the command line has it, a list of zero or one strings."""
    if isinstance(value, bool) != is_switch and value is not None:
        refuse(f'argument {name}: {json.dumps(value)} is not what it should be')
    if value is None or value is False:
        return []
    if value is True:
        return [f'--{name}']
    if not isinstance(value, (str, int, float)):
        refuse(f'argument {name}: {json.dumps(value)} is neither a number nor a text')
    return [f'--{name}={value}']

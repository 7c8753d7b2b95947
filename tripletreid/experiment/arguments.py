"""args.json: store the arguments of a training run, load them, and find the files that they name."""
import json
import os

from tripletreid.errors import InputError
from tripletreid.experiment.train_flags import LAUNCH_ARGS, LIST_ARGS, make_parser
from tripletreid.files import write_json

FILE = 'args.json'


def as_list(values):
    """Return the values of an argument that is a string, or a list where there are several."""
    return values if isinstance(values, list) else [values]


def load(root):
    """Read an experiment's args.json.

    Returns: (args, stored): the arguments as `train.py` would have parsed them, with defaults for missing ones, and the
        content of the file as a dict.

    Raises:
        InputError: there is no such file, it is not a JSON object, or the command line would refuse one of its values.
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
    # A file without a pre-crop size was written by a version with this default, whatever the net input.
    argv = ['--experiment_root', root, '--pre_crop_height=288', '--pre_crop_width=144']
    for name in known:
        if name in stored and name not in LAUNCH_ARGS:
            argv += _as_flag(name, stored[name], is_switch=isinstance(known[name], bool), refuse=refuse)
    return parser.parse_args(argv), stored


def _as_flag(name, value, is_switch, refuse):
    """Return an argument of args.json as words of a command line, a list of str."""
    if isinstance(value, bool) != is_switch and value is not None:
        refuse(f'argument {name}: {json.dumps(value)} has the wrong type')
    if value is None or value is False:
        return []
    if value is True:
        return [f'--{name}']
    if name in LIST_ARGS and isinstance(value, list):
        # `--name=value` takes a single value, and a value that is a word of its own must not look like a flag.
        if not value or not all(isinstance(each, str) and each[:1] not in ('', '-') for each in value):
            refuse(f'argument {name}: {json.dumps(value)} is not a list of names')
        return [f'--{name}', *value]
    if not isinstance(value, (str, int, float)):
        refuse(f'argument {name}: {json.dumps(value)} is neither a number nor a string')
    return [f'--{name}={value}']


def is_imported(args):
    """Return whether an experiment root holds imported weights that were never trained in it, from its arguments."""
    return args.train_set is None and args.initial_checkpoint is not None


def import_note(args):
    """Return the note that a root holds imported weights, in parentheses after its name; '' for a trained one."""
    return f' (weights imported from {args.initial_checkpoint}, never trained here)' if is_imported(args) else ''


def as_stored(args):
    """Return the arguments as args.json stores them, a dict."""
    return {name: value[0] if name in LIST_ARGS and value and len(value) == 1 else value
            for name, value in vars(args).items()}


def save(args):
    """Write the arguments of a run to its args.json; stored values stay, except the iterations of an extended run.

    Args:
        args: parsed arguments, with `experiment_root`.
    """
    path = os.path.join(args.experiment_root, FILE)
    kept = {}
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
            kept = json.load(file)
    write_json(path, {**as_stored(args), **kept, 'train_iterations': args.train_iterations})


def stored_image_root(root, args):
    """Return the image root that an experiment's args.json names.

    Args:
        root: the experiment root.
        args: its arguments, as `load` returns them.

    Raises:
        InputError: args.json names no image root, several, or one that does not exist.
    """
    check_stored_image_roots(root, args)
    if isinstance(args.image_root, list):
        raise InputError(f'{os.path.join(root, FILE)} names several image roots, {" and ".join(args.image_root)}: give '
                         f'an --image_root.')
    return args.image_root


def check_stored_image_roots(root, args):
    """Raise InputError if an experiment's args.json names no image root, or one that does not exist."""
    if not args.image_root:
        raise InputError(f'{os.path.join(root, FILE)} names no image root: give an --image_root.')
    for image_root in as_list(args.image_root):
        if not os.path.isdir(image_root):
            raise InputError(_missing(root, 'the image root', image_root, 'give another --image_root'))


def check_stored_files(root, args):
    """Raise InputError if a csv file that an experiment's args.json names is missing; `args` as `load` returns it."""
    for name in ('train_set', 'eval_query', 'eval_gallery'):
        for path in as_list(getattr(args, name) or []):
            if not os.path.exists(path):
                raise InputError(_missing(root, name, path, 'put it back'))


def _missing(root, kind, path, remedy):
    sentence = f'{os.path.join(root, FILE)} names {kind} {path}, which does not exist'
    if os.path.isabs(path):
        return f'{sentence}; {remedy}.'
    return (f'{sentence}. The path is relative to the folder in which training was started: run this command in that '
            f'folder, or {remedy}.')

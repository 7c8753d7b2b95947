"""The files of an adaptation: its flags and rounds in `adapt.json`, the list of images, a folder per round, checkpoints."""
import argparse
import json
import os

from tripletreid.errors import InputError
from tripletreid.experiment import arguments
from tripletreid.files import write_json, written_whole

FILE = 'adapt.json'
# A start may give others than the run has.
LAUNCH_ARGS = ('experiment_root', 'resume', 'rounds', 'workers', 'batch_size', 'loading_threads')


def images_file(root):
    """Return the path of the csv file of all images."""
    return os.path.join(root, 'images.csv')


def round_root(root, number):
    """Return the experiment root of a round."""
    return os.path.join(root, f'round-{number:03}')


def save(root, args, rounds):
    """Write the flags and the finished rounds."""
    write_json(os.path.join(root, FILE), {'arguments': vars(args), 'rounds': rounds})


def read_json(path):
    """Read a JSON object. Raises InputError where it cannot be read."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f'{path} cannot be read ({error}).') from error
    if not isinstance(content, dict):
        raise InputError(f'{path} does not hold a JSON object.')
    return content


def rounds(root):
    """Return the finished rounds, a list of dicts."""
    return read_json(os.path.join(root, FILE))['rounds']


def resumed(args, parser):
    """Return the arguments of an adaptation that is continued.

    Args:
        args: as parsed. parser: for the flags of this start.

    Raises:
        InputError: there is no adaptation in the experiment root.
    """
    path = os.path.join(args.experiment_root, FILE)
    if not os.path.isfile(path):
        raise InputError(f'{args.experiment_root} holds no adaptation ({FILE} is missing): start one without --resume.')
    stored = read_json(path)
    if not isinstance(stored.get('arguments'), dict) or not isinstance(stored.get('rounds'), list):
        raise InputError(f'{path} is not a file of adapt.py.')
    given = set(parser.given)
    other = sorted(given - set(LAUNCH_ARGS) - {'train_flags'})
    if other:
        parser.error(f'{", ".join(f"--{name}" for name in other)} without effect: --resume loads all flags from {path}')
    values = {**vars(args), **stored['arguments']}
    for name in LAUNCH_ARGS:
        if name in given or name in ('experiment_root', 'resume'):
            values[name] = getattr(args, name)
    return argparse.Namespace(**values)


def publish(root, folder, number):
    """Make the newest checkpoint of a round the newest one of the adaptation, which embed.py and search.py can use.

    Returns: its name.
    """
    from tripletreid.experiment import checkpoints
    newest = checkpoints.newest_first(folder)[0]
    name = f'checkpoint-{number}'
    for ending in (checkpoints.DATA_SUFFIX, '.index'):
        with written_whole(os.path.join(root, name + ending)) as temporary:
            os.unlink(temporary) if os.path.exists(temporary) else None
            os.link(newest + ending, temporary)
    args, _ = arguments.load(folder)
    args.experiment_root = root
    if not os.path.exists(os.path.join(root, arguments.FILE)):
        arguments.save(args)
    checkpoints.write_state(root, number)
    return name

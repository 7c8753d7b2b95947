"""Merge the command line of a run with the args.json of the run that it resumes, or whose model it starts with."""
import os

from tripletreid.errors import InputError
from tripletreid.experiment.arguments import FILE, is_imported, load
from tripletreid.experiment.train_flags import CHECKPOINT_ARGS, LAUNCH_ARGS, MACHINE_ARGS, MODEL_ARGS, pre_crop


def merge_with_stored(args, given):
    """Return the arguments of a run to be resumed.

    Args:
        args: arguments as parsed from the command line.
        given: names of the arguments that the command line sets.

    Returns: (args, notices): the stored arguments, completed from the command line; and sentences for the user.
    """
    merged, stored = load(args.experiment_root)
    if is_imported(merged):
        root = args.experiment_root
        raise InputError(f'{root} holds the imported weights {merged.initial_checkpoint}, which were never trained here, so '
                         f'there is no run to resume. Start a run from them in another root: --initial_checkpoint {root} '
                         f'--initial_head, with --train_set and --image_root.')
    notices, defaults_used = [], []
    for name, value in vars(args).items():
        if name in LAUNCH_ARGS:
            setattr(merged, name, value)
        elif name not in stored and name in given and name in CHECKPOINT_ARGS and value != getattr(merged, name):
            raise InputError(f'The run to be resumed was started without --{name}, so its checkpoints lack the variables '
                             f'that it needs. Remove the flag, or start another run with it.')
        elif name not in stored and name in given:
            setattr(merged, name, value)
            notices.append(f'{FILE} lacks the argument {name}: using the given {value!r}.')
        elif name not in stored:
            defaults_used.append(name)
        elif name in given and name in MACHINE_ARGS and value != getattr(merged, name):
            notices.append(f'{name} is {value!r} in this start, instead of the stored {getattr(merged, name)!r}.')
            setattr(merged, name, value)
        elif name in given and name == 'train_iterations' and value > merged.train_iterations:
            notices.append(_sentence_of_longer_run(merged, value))
            merged.train_iterations = value
        elif name in given and value != getattr(merged, name):
            notices.append(f'The argument {name} was given as {value!r}, but the run to be resumed has '
                           f'{getattr(merged, name)!r}: using the stored value.')
    if defaults_used:
        notices.append(f'{FILE} lacks {", ".join(defaults_used)}: using the defaults.')
    unknown = sorted(set(stored) - set(vars(args)))
    if unknown:
        notices.append(f'{FILE} holds unknown arguments, which are not used: {", ".join(unknown)}.')
    return merged, notices


def _sentence_of_longer_run(args, iterations):
    """Return the notice for a run that is extended to more iterations."""
    sentence = f'The run is extended to {iterations} iterations, from {args.train_iterations}.'
    decays = args.lr_schedule in ('exponential', 'cosine') and 0 <= args.decay_start_iteration < iterations
    if decays:
        sentence += (f' The decay of its learning rate, from iteration {args.decay_start_iteration} to the end, is '
                     f'stretched, so it differs from the decay of a run that had {iterations} iterations from the start.')
    return sentence


def take_model(args, given):
    """Set the flags of the model that are not given to the flags of the run that --initial_checkpoint names, if it is one.

    Args:
        args: arguments of a new run with --initial_head; changed.
        given: names of the arguments that the command line sets.

    Returns: notices, a list of sentences.
    """
    path = args.initial_checkpoint
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if not os.path.isfile(os.path.join(folder, FILE)):
        return []
    trained, _ = load(folder)
    taken = [name for name in MODEL_ARGS if name not in given and getattr(args, name) != getattr(trained, name)]
    for name in taken:
        setattr(args, name, getattr(trained, name))
    for side in ('height', 'width'):
        if f'net_input_{side}' in taken and f'pre_crop_{side}' not in given:
            setattr(args, f'pre_crop_{side}', pre_crop(getattr(args, f'net_input_{side}')))
    flags = ', '.join(f'--{name} {getattr(args, name)}' for name in taken)
    return [f'Taken over from {folder}: {flags}.'] if taken else []

"""Checkpoints in the format of the original: TensorFlow V2 files that hold tensors under their TF1 names.

A checkpoint N is the two files `checkpoint-N.index` and `checkpoint-N.data-00000-of-00001`; the file `checkpoint`
names the newest one. One reader opens the checkpoints of this project, of the original and of TF-Slim (V1 or V2).
"""
import contextlib
import glob
import os
import re

import tensorflow as tf

from tripletreid.errors import InputError, listed
from tripletreid.experiment import best_checkpoint
from tripletreid.files import sync_folder, tensorflow_os_errors, written_whole

STATE_FILE = 'checkpoint'
AVERAGE = '/ExponentialMovingAverage'  # Suffix of the name of a variable's average over steps, as in TF1.
DATA_SUFFIX = '.data-00000-of-00001'


class DamagedCheckpoint(InputError):
    """The files of a checkpoint are truncated or changed."""


def prefix(root, step):
    """Return the path of the checkpoint of a step, without its files' endings."""
    return os.path.join(root, f'checkpoint-{step}')


def step_of(path):
    """Return the step of a checkpoint from its name, or -1 if the name has no valid step."""
    found = re.search(r'-(\d{1,18})$', path)
    return int(found[1]) if found else -1


def save(root, step, variables, keep=0, resumed_from=None):
    """Write the checkpoint of a step: data, then index, then the state file; each complete and on disk before the next.

    Args:
        root: experiment root.
        step: number of finished iterations.
        variables: dict {TF1 name: variable or tensor}.
        keep: number of newest checkpoints that stay; 0: all.
        resumed_from: a step whose checkpoint stays in any case, like the best validated one.

    Returns: the checkpoint's path without endings.

    Raises:
        OSError: the disk is full or gone. Existing files are unchanged.
        InputError: a variable that is not finite.
    """
    path = prefix(root, step)
    temporary = os.path.join(root, f'.checkpoint-{step}.partial')
    names = sorted(variables)
    tensors = [tf.convert_to_tensor(variables[name]) for name in names]
    for name, tensor in zip(names, tensors):
        if tensor.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(tensor)):
            raise InputError(f'{name} is not finite after {step} iterations, so no checkpoint is written over them. '
                             f'Go on from an earlier one with a lower --learning_rate.')
    remove_unfinished(root)
    try:
        with tensorflow_os_errors(path):
            tf.raw_ops.SaveV2(prefix=temporary, tensor_names=names, shape_and_slices=[''] * len(names),
                              tensors=tensors)
        for ending in (DATA_SUFFIX, '.index'):
            with open(temporary + ending, 'rb') as written:
                os.fsync(written.fileno())
        # An old index must not exist next to new data if a step is written again.
        if os.path.exists(path + '.index'):
            os.remove(path + '.index')
        for ending in (DATA_SUFFIX, '.index'):
            os.replace(temporary + ending, path + ending)
        sync_folder(root)
    finally:
        remove_unfinished(root)
    write_state(root, step)
    if keep:
        _remove_all_but(root, step, keep, resumed_from)
    return path


def _remove_all_but(root, newest_step, keep, resumed_from):
    """Remove old checkpoints; newer ones than the newest step belong to a run that diverged, and stay."""
    old = sorted(step for step in steps_in(root) if step <= newest_step)[:-keep]
    for step in old:
        if step not in (resumed_from, best_checkpoint.best_step(root)):
            for ending in ('.index', DATA_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(prefix(root, step) + ending)
    write_state(root, newest_step)


def remove_unfinished(root):
    """Remove the files of an incompletely written checkpoint; TensorFlow adds its own endings."""
    for path in glob.glob(os.path.join(glob.escape(root), '.checkpoint*.partial*')):
        os.remove(path)


def write_state(root, newest_step):
    """Write TensorFlow's state file: the newest checkpoint, and all existing ones up to it."""
    steps = sorted(step for step in steps_in(root) if step <= newest_step)
    lines = [f'model_checkpoint_path: "checkpoint-{newest_step}"']
    lines += [f'all_model_checkpoint_paths: "checkpoint-{step}"' for step in steps]
    with written_whole(os.path.join(root, STATE_FILE)) as temporary:
        with open(temporary, 'w', encoding='utf-8') as file:
            file.write('\n'.join(lines) + '\n')


def steps_in(root):
    """Return the steps of all checkpoints in an experiment root, unordered."""
    found = (re.fullmatch(r'checkpoint-(\d+)\.index', name) for name in os.listdir(root))
    return [int(match[1]) for match in found if match]


def were_written(root):
    """Return whether the run of an experiment root has ever written a checkpoint; without one it has trained nothing."""
    return bool(steps_in(root)) or os.path.exists(os.path.join(root, STATE_FILE))


def newest_first(root):
    """Return the paths of an experiment root's checkpoints: the one in the state file, then earlier ones, newest first.

    Where the state file is missing or garbage, all checkpoints count, by their step.

    Raises:
        InputError: there is no checkpoint.
    """
    steps = sorted(steps_in(root), reverse=True)
    if not steps:
        raise InputError(f'There is no checkpoint in {root}.')
    state_path = os.path.join(root, STATE_FILE)
    named = None
    if os.path.isfile(state_path):
        with open(state_path, encoding='utf-8', errors='replace') as file:
            named = re.search(r'^model_checkpoint_path: "(.*)"$', file.read(1 << 20), re.MULTILINE)
    # The original may have written absolute paths; only the name within this folder counts.
    if named and step_of(os.path.basename(named[1])) in steps:
        steps = [step for step in steps if step <= step_of(os.path.basename(named[1]))]
    return [prefix(root, step) for step in steps]


def find_in_root(root, name=None):
    """Return the named checkpoint of an experiment root, as `find` does; None: the newest one, by `newest_first`."""
    if name == '':
        raise InputError('--checkpoint is empty: name a checkpoint of the experiment root, or leave it for the newest.')
    return newest_first(root)[0] if name is None else find(os.path.join(root, name))


def find(path):
    """Find the checkpoint of a path: with or without the files' endings, or the folder that contains it.

    Args:
        path: as a user gives it: `model.ckpt`, `model.ckpt.index`, `checkpoint-25000`, `resnet_v1_50.ckpt` (one V1
            file), `checkpoint-best` or a folder with one checkpoint (or with a state file that names one).

    Returns: the path that TensorFlow's reader takes.

    Raises:
        InputError: there is no checkpoint, or several; the message lists them.
    """
    if os.path.isdir(path):
        return _find_in_folder(path)
    folder, name = os.path.split(path)
    if name == best_checkpoint.FILE and os.path.isfile(path):
        path = prefix(folder, best_checkpoint.best_step(folder))
    bare = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
    for candidate in (bare, bare + '.ckpt'):
        if os.path.isfile(candidate + '.index') or os.path.isfile(candidate):
            return candidate
    folder, name = os.path.split(path)
    others = _checkpoints_in(folder or '.')
    there = f'found there: {", ".join(others)}' if others else 'and no other is in that folder'
    raise InputError(f'There is no checkpoint {path}; {there}.')


def _find_in_folder(folder):
    names = _checkpoints_in(folder)
    if steps_in(folder):
        return newest_first(folder)[0]
    if len(names) == 1:
        return os.path.join(folder, names[0])
    content = f'several checkpoints, name one of them: {", ".join(names)}' if names else 'no checkpoint'
    raise InputError(f'The folder {folder} holds {content}.')


def _checkpoints_in(folder):
    """Return the names of the checkpoints in a folder, without the endings of V2 files."""
    if not os.path.isdir(folder):
        return []
    names = {name[:-len('.index')] if name.endswith('.index') else name
             for name in os.listdir(folder) if name.endswith(('.index', '.ckpt'))}
    return sorted(names)


def index_file(path):
    """Return the file of a checkpoint with the checksums of its tensors, or the one file of a V1 checkpoint."""
    return path + '.index' if os.path.isfile(path + '.index') else path


def open_reader(path):
    """Return TensorFlow's reader of a checkpoint, V1 or V2. Raises DamagedCheckpoint if its header is unreadable."""
    try:
        return tf.train.load_checkpoint(path)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise DamagedCheckpoint(f'{path} is no TensorFlow checkpoint, or a damaged one.') from error


def read(path, shapes):
    """Read tensors by name, and ignore all others of the checkpoint.

    Args:
        path: as `find` returns it.
        shapes: dict {name: shape} of the needed tensors.

    Returns: dict {name: NumPy array}.

    Raises:
        InputError: names that are missing or have another shape, the first of them listed.
        DamagedCheckpoint: its files are truncated or changed.
    """
    reader = open_reader(path)
    held = reader.get_variable_to_shape_map()
    missing = [name for name in shapes if name not in held]
    misshapen = [f'{name} {list(shape)} (there: {held[name]})' for name, shape in shapes.items()
                 if name in held and tuple(held[name]) != tuple(shape)]
    if missing or misshapen:
        lacks = [f'lacks {listed(missing)}'] if missing else []
        differs = [f'has other shapes for {listed(misshapen)}'] if misshapen else []
        raise InputError(f'The checkpoint {path} does not fit: it {" and ".join(lacks + differs)}. freeze.py --describe '
                         f'{path} lists the net and head that it fits.')
    try:
        return {name: reader.get_tensor(name) for name in shapes}
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        raise DamagedCheckpoint(f'The files of the checkpoint {path} are damaged '
                                f'({str(error).splitlines()[0]}).') from error


def load(path, variables):
    """Set variables from a checkpoint: all of them, or none and an error (see `read`).

    Args:
        path: as `find` returns it.
        variables: dict {TF1 name: variable}.
    """
    values = read(path, {name: variable.shape for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(values[name])


def load_weights(path, variables, weights=None):
    """Set variables from the weights of a checkpoint that embed: its averages over the steps, if it has them for all.

    Args:
        path, variables: of `load`.
        weights: 'raw' for the weights of the last step in any case, or None.

    Raises:
        InputError: as `read`, or raw weights are requested although there are no others.
    """
    held = open_reader(path).get_variable_to_shape_map()
    averaged = all(name + AVERAGE in held for name in variables)  # TF-Slim's files average some.
    if weights == 'raw' and not averaged:
        raise InputError(f'--weights raw has no effect: the checkpoint {path} is of a training without --ema and holds no '
                         f'others.')
    suffix = AVERAGE if averaged and weights != 'raw' else ''
    load(path, {name + suffix: variable for name, variable in variables.items()})


def load_newest(root, load, log):
    """Load the newest checkpoint that is complete; a damaged one is skipped with a warning.

    Args:
        root: experiment root.
        load: function path -> None, which raises DamagedCheckpoint before it changes anything.
        log: logger for the warnings.

    Returns: the checkpoint's path.

    Raises:
        InputError: there is no checkpoint, none is complete, or it does not fit.
    """
    for path in newest_first(root):
        try:
            load(path)
            return path
        except DamagedCheckpoint as error:
            log.warning('%s Falling back to the previous one.', error)
    raise InputError(f'No checkpoint in {root} is complete.')

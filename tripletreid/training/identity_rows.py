"""Restore state with one row per identity by the names of the identities, whose numbers follow their sort order.

A checkpoint stores the names. When a csv file has changed before a run is resumed, the rows of a classifier, the centres,
the mean embeddings and the memory follow their names to the new numbers. A checkpoint of an earlier version has no names.
"""
import os

import numpy as np
import tensorflow as tf

from tripletreid.errors import InputError, some
from tripletreid.experiment import checkpoints

NAMES = 'identity_names'


def load(state, path, log):
    """Set the variables of a `TrainState` from a checkpoint: all of them, or none and an error.

    Args:
        state: `TrainState`; rows of new identities keep their initial values.
        path: as `checkpoints.find` returns it.
        log: logger.

    Raises:
        InputError: the checkpoint does not fit; see `checkpoints.read`.
    """
    held = checkpoints.open_reader(path).get_variable_to_shape_map()
    axes, variables = identity_axes(state), state.variables
    if NAMES not in held:
        _check_count(path, held, axes, len(state.identity_names))
        checkpoints.load(path, variables)
        if axes or state.memory:
            log.warning('%s does not store the names of the identities: an earlier version wrote it. Rows per '
                        'identity are assigned in the order of the names, which is right only if the training set still '
                        'has the same identities.', os.path.basename(path))
        return
    stored = [name.decode() for name in checkpoints.read(path, {NAMES: held[NAMES]})[NAMES]]
    if stored == list(state.identity_names):
        checkpoints.load(path, variables)
        return

    new, gone = (sorted(set(one) - set(other)) for one, other in ((state.identity_names, stored),
                                                                  (stored, state.identity_names)))
    log.warning('The training set has other identities than %s: %s new, %s gone. Rows per identity follow the names; '
                'new identities start with initial values.', os.path.basename(path), some(new), some(gone))
    # The sampler draws again, because its drawn identities have the old numbers.
    redrawn = [name for name in state.sampler.variables if name not in axes]
    shapes = {name: _with_count(variable.shape, axes.get(name), len(stored)) for name, variable in variables.items()
              if name not in redrawn}
    values = checkpoints.read(path, shapes)
    places = {name: place for place, name in enumerate(stored)}
    sources = np.array([places.get(name, -1) for name in state.identity_names])
    for name, axis in axes.items():
        initial = tf.convert_to_tensor(variables[name]).numpy()
        values[name] = _rows_by_name(initial, values[name], axis, sources)
    if state.memory:
        numbers = {place: number for number, place in enumerate(sources) if place >= 0}
        _drop_gone(values, numbers, path)
    for name, value in values.items():
        variables[name].assign(value)


def identity_axes(state):
    """Return the variables of a `TrainState` with one row per identity, {name: axis}, with their moments and averages."""
    owners = {}
    for part in (*state.objectives.values(), state.sampler):
        owners |= part.identity_axes
    return {name: axis for name in state.variables for owner, axis in owners.items()
            if name == owner or name.startswith(f'{owner}/')}


def _with_count(shape, axis, count):
    return tuple(count if place == axis else size for place, size in enumerate(shape))


def _check_count(path, held, axes, count):
    """Raise InputError when a checkpoint without names has another number of identities."""
    for name, axis in axes.items():
        if name in held and len(held[name]) > axis and held[name][axis] != count:
            raise InputError(f'{path} was written for {held[name][axis]} identities and does not store their names, and '
                             f'the training set has {count} now: put the csv file of the start of this run back.')


def _rows_by_name(initial, stored, axis, sources):
    """Return the initial values with the stored rows of the identities that have one; `sources` [I] are places or -1."""
    known = np.flatnonzero(sources >= 0)
    rows = np.moveaxis(initial.copy(), axis, 0)
    rows[known] = np.moveaxis(stored, axis, 0)[sources[known]]
    return np.moveaxis(rows, 0, axis)


def _drop_gone(values, numbers, path):
    """Replace embeddings of gone identities in the memory by repeating the others, and renumber these."""
    pids = values['memory_pids']
    kept = np.flatnonzero([pid in numbers for pid in pids])
    if not len(kept):
        raise InputError(f'The memory of {path} has no identity of the training set: put the csv file of the start of this '
                         f'run back, or start a new run.')
    rows = np.resize(kept, len(pids))
    values['memory_embs'] = values['memory_embs'][rows]
    values['memory_pids'] = np.array([numbers[pid] for pid in pids[rows]], pids.dtype)

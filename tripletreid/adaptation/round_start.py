"""The start of a round: a checkpoint with the weights so far, and a classifier made of the clusters' mean embeddings."""
import os

import numpy as np
import tensorflow as tf

from tripletreid.dataset import load_dataset
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, checkpoints
from tripletreid.input_pipeline import sampling
from tripletreid.modeling import model
from tripletreid.training import identity_rows, train_state

CLASSIFIER = 'classifier/'
EPSILON = 1e-5  # Heads use it in their batch norm.


def write(args, previous_root, previous_checkpoint, is_first, embeddings):
    """Write `checkpoint-0` and then `args.json` of a round's experiment root, from which train.py --resume trains.

    Args:
        args: of train.py, for this round; its `train_set` is the csv file of the clusters.
        previous_root, previous_checkpoint: root and name of a checkpoint of the round before or of the initial training.
        is_first: whether it is the initial training, whose optimizer is not continued.
        embeddings: float32 [N, D] of the rows of the train set, by the previous checkpoint.

    Raises:
        InputError: fewer clusters than a batch needs, or a checkpoint that does not fit.
    """
    train_set = load_dataset(args.train_set)
    try:
        identities = sampling.Identities(train_set, args.batch_p)
    except InputError as error:
        count = len(set(train_set.pids))
        raise InputError(f'There are {count} clusters, fewer than the {args.batch_p} identities of a batch: lower '
                         f'--batch_p, lower --min_size or --min_samples, or give a larger --threshold.') from error
    tf.keras.backend.clear_session()
    state = train_state.create(args, identities, tf.distribute.get_strategy())
    network = model.named_variables(state.network)
    path = checkpoints.find_in_root(previous_root, previous_checkpoint)
    if is_first:
        embeddings = _load_initial(network, path, embeddings)
    else:
        fresh = {*identity_rows.identity_axes(state), 'global_step'}  # Clusters of the round before mean nothing now.
        fresh.update(name for part in (state.memory, state.sampler) if part for name in part.variables)
        checkpoints.load(path, {name: variable for name, variable in state.variables.items() if name not in fresh})

    # The classifier starts with the mean direction of each cluster.
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    means = np.zeros((len(identities.names), embeddings.shape[1]))
    np.add.at(means, identities.pid_numbers, embeddings / lengths)
    means /= np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    for name, variable in network.items():
        if name.startswith(CLASSIFIER):
            variable.assign(means.T)
        if state.average and (is_first or name.startswith(CLASSIFIER)):
            state.average.variables[name + checkpoints.AVERAGE].assign(variable.value)
    os.makedirs(args.experiment_root, exist_ok=True)
    checkpoints.save(args.experiment_root, 0, state.values())
    arguments.save(args)  # Last: its existence means that the start is complete.


def _load_initial(network, path, embeddings):
    """Load the weights of the initial training; a batch norm of the head that it did not have gets the statistics of the
    embeddings, which it normalises. Returns the embeddings of the resulting network."""
    held = checkpoints.open_reader(path).get_variable_to_shape_map()
    added = {name for name, variable in network.items()
             if name not in held and '.BatchNorm' in name.replace('/', '.') and variable.shape == embeddings.shape[1:]}
    checkpoints.load_weights(path, {name: variable for name, variable in network.items()
                                    if name not in added and not name.startswith(CLASSIFIER)})
    if not added:
        return embeddings
    mean, variance = (function(embeddings, axis=0, dtype=np.float64) for function in (np.mean, np.var))
    for name in added:
        value = {'moving_mean': mean, 'moving_variance': variance}.get(name.rpartition('/')[2])
        if value is not None:
            network[name].assign(value)
    return (embeddings - mean) / np.sqrt(variance + EPSILON)

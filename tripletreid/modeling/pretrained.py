"""Weights of a model's body from the files that they are published in, or from another run."""
import os
import re

import h5py
import keras
import numpy as np

from tripletreid import plugins
from tripletreid.errors import InputError, listed
from tripletreid.experiment import arguments, checkpoints, train_flags
from tripletreid.modeling import published, weight_files
from tripletreid.modeling.batch_norm import with_keras_batch_norm
from tripletreid.modeling.model import named_variables

# Neither of the body nor of the head: the classifiers of TF-Slim and of `model.with_classifier`, and TF-Slim's mean pixel.
KNOWN_UNUSED = re.compile(r'(^|/)(logits|classifier|mean_rgb)(/|$)', re.IGNORECASE)


def load_body(network, path):
    """Initialise the body of a model from pre-trained weights; the head stays as it is.

    Args:
        network: as `build` returns it.
        path: a checkpoint of this project or of TensorFlow 1 (see `checkpoints.find`), the paper's `.npz`, for the
            nets of Keras Applications the `.h5` or `.weights.h5` of the net without its top, or for the nets with a
            PUBLISHED layout a `.npz` or `.safetensors` (see `published`).

    Returns: names of arrays in the file that are not used, such as a head, a list; see `unused`.

    Raises:
        InputError: nothing there, weights that do not fit the body, or more of them in its scope than it has.
    """
    body = named_variables(network.body)
    # No published net but fast-reid's has the exponent of a pooling.
    variables = {name: variable for name, variable in body.items() if name != 'gem/p'}
    layout = published.layout_of(network.body.name)
    if layout and path.endswith(weight_files.ENDINGS):
        return published.load(path, body, layout, network.body.name)
    if path.endswith('.npz'):
        load_trinet(path, variables)
        return []
    weight_files.refuse_pytorch(path)
    if path.endswith('.safetensors'):
        raise InputError(f'{path}: the net {network.body.name} takes no weights of this format. '
                         f'{published.sentence_of_nets(published.shapes(path))}')
    if path.endswith('.h5'):
        load_keras(path, network.body)
        return []
    path = checkpoints.find(path)
    if 'gem/p' in body and 'gem/p' in checkpoints.open_reader(path).get_variable_to_shape_map():
        variables = body
    scopes = {'gem', *(name.split('/')[0] for name in body)}
    others = unused(path, variables)
    foreign = [name for name in others if name.split('/')[0] in scopes]
    if foreign:
        raise InputError(f'{path} holds {listed(foreign)}, which the net {network.body.name} as it is built here does '
                         f'not have: choose --model_name and --pooling as that net was trained with.')
    load_checkpoint(path, variables, layout)
    return others


def load_body_and_head(network, path):
    """Initialise body and head of a model; the arguments and errors of `load_body`.

    Returns: names of arrays in the file that are not used, a list.
    """
    body = named_variables(network.body)
    head = {name: variable for name, variable in named_variables(network).items() if name in network.head_variables}
    layout = published.layout_of(network.body.name)
    if layout and path.endswith(weight_files.ENDINGS):
        return published.load(path, body, layout, network.body.name, (network.head_name, head))
    if path.endswith('.npz'):
        load_trinet(path, {**body, **head})
        return []
    others = load_body(network, path)
    if head and path.endswith('.h5'):
        raise InputError(f'{path} holds no head {network.head_name}.')
    if head:
        checkpoints.load(checkpoints.find(path), head)
    return [name for name in others if name not in head]


def initial_options(args):
    """Return the options of the net that the initial weights of a new run imply, {option: value}.

    Args:
        args: train.py's arguments, with an `initial_checkpoint`.

    Raises:
        InputError: a file that cannot be read.
    """
    path = args.initial_checkpoint
    if os.path.isdir(path) and os.path.isfile(os.path.join(path, arguments.FILE)):
        trained, _ = arguments.load(path)
        options = train_flags.net_options(trained) if trained.model_name == args.model_name else {}
        return {name: value for name, value in options.items() if name != 'drop_path'}
    return published.options(args.model_name, path)


def load_checkpoint(path, variables, layout):
    """Assign the weights of a checkpoint; position embeddings of images of another size are resampled.

    Args:
        path: as `checkpoints.find` returns it.
        variables: {TensorFlow 1 name: variable} of a body.
        layout: see `published`, or None.

    Raises:
        InputError: as of `checkpoints.read`.
    """
    held = checkpoints.open_reader(path).get_variable_to_shape_map()
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    grids = {name: tuple(held[name]) for name, shape in shapes.items()
             if hasattr(layout, 'POSITIONS') and layout.POSITIONS.search(name) and name in held
             and len(held[name]) == 3 and held[name][2] == shape[2] and tuple(held[name]) != shape}
    for name, value in checkpoints.read(path, {**shapes, **grids}).items():
        variables[name].assign(layout.resized(value, *shapes[name][:2]) if name in grids else value)


def unused(path, variables):
    """Return the names of layers' variables that a checkpoint holds and a model does not have, sorted.

    Skipped are variables of no layer (global_step, Adam's powers: they have no scope), slots of optimizers and moving
    averages (…/weights/RMSProp: their scope is a variable itself), and variables that are known to belong to neither body
    nor head.

    Args:
        path: as `checkpoints.find` returns it.
        variables: {TensorFlow 1 name: variable} of the model.
    """
    held = checkpoints.open_reader(path).get_variable_to_shape_map()
    return sorted(name for name in held if name not in variables and '/' in name
                  and name.rpartition('/')[0] not in held and not KNOWN_UNUSED.search(name))


def load_keras(path, body):
    """Assign the weights that Keras distributes for a net of Keras Applications, in either of its formats.

    Args:
        path: `.h5` or `.weights.h5` of the net without its top.
        body: keras.Model of such a net; its layers after the net of Keras keep their values.

    Raises:
        InputError: an unreadable file, one of another net or with a top, or a body that is no net of Keras.
    """
    if 'features' not in body.output:
        raise InputError(f'{path} is a file of Keras, whose weights the net {body.name} cannot take.')
    own = keras.Model(body.input, body.output['features'])
    arrays = []
    try:
        with h5py.File(path) as file:
            file.visititems(lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None)
        # Keras ignores surplus arrays of a `.weights.h5` without an error.
        if len(arrays) == len(own.weights):
            pretrained = with_keras_batch_norm(own)
            pretrained.load_weights(path)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f'{path} has no weights that the net {body.name} can take: '
                         f'{" ".join(str(error).split())}') from error
    if len(arrays) != len(own.weights):
        raise InputError(f'{path} holds {len(arrays)} arrays where the net {body.name} without its top has '
                         f'{len(own.weights)}. Is it the file of another net, or of one with its top?')
    values = named_variables(pretrained)
    for name, variable in named_variables(own).items():
        variable.assign(values[name])


def load_trinet(path, variables):
    """Assign the weights that the paper's authors released for Theano to variables of the net `trinet`.

    Args:
        path: `.npz` with the arrays arr_0, arr_1, … of the net and its head `fc1024`.
        variables: {TensorFlow 1 name: variable}, e.g. of the net alone; other arrays are ignored.

    Raises:
        InputError: an unreadable file, one array too many or too few, an array of another shape than its variable,
            or a variable that these weights do not have.
    """
    names = plugins.load('nets', 'trinet').array_names()
    held, numbered = weight_files.shapes(path), [f'arr_{number}' for number in range(len(names))]
    if held and set(held) != {f'arr_{number}' for number in range(len(held))}:
        raise InputError(f'{path} holds arrays of other names than arr_0, arr_1, … without a gap.')
    if len(held) != len(names):
        raise InputError(f'{path} holds {len(held)} arrays where the weights of the TriNet are {len(names)}.')
    arrays = weight_files.read(path, numbered)
    values = dict(_converted(name, arrays[number]) for name, number in zip(names, numbered))
    missing = [name for name in variables if name not in values]
    if missing:
        raise InputError(f'{path} holds the weights of the net trinet with the head fc1024, but not {missing[0]}'
                         f'{f" and {len(missing) - 1} more" if len(missing) > 1 else ""}.')
    for name, variable in variables.items():
        if values[name].shape != tuple(variable.shape):
            number = list(values).index(name)
            raise InputError(f'{path}: array arr_{number}, which is to become {name}, has the shape '
                             f'{values[name].shape} where {tuple(variable.shape)} is needed (both as TensorFlow orders '
                             f'the axes).')
        if not np.isfinite(values[name]).all():
            raise InputError(f'{path}: the value of {name} is not finite everywhere.')
    for name, variable in variables.items():
        variable.assign(values[name])


def _converted(name, array):
    """Return (name, value) of the variable that an array of the released weights becomes."""
    scope, _, kind = name.rpartition('/')
    if kind == 'inv_std':
        with np.errstate(divide='ignore'):
            return f'{scope}/moving_variance', np.float64(array) ** -2 - 1e-5
    if array.ndim == 4:
        return name, array.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
    return name, array

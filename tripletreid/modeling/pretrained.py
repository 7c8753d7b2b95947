"""Pre-trained weights for the body of a model, from the files that they are published in."""
import re

import h5py
import keras
import numpy as np

from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import checkpoints
from tripletreid.modeling import weight_files
from tripletreid.modeling.batch_norm import with_keras_batch_norm
from tripletreid.modeling.model import named_variables

# Beside body and head: the classifiers of TF-Slim and of ours (`model.with_classifier`), and TF-Slim's mean pixel.
KNOWN_BESIDE = re.compile(r'(^|/)(logits|classifier|mean_rgb)(/|$)', re.IGNORECASE)


def load_body(network, path):
    """Initialise the body of a model from pre-trained weights; the head stays as it is.

    Args:
        network: as `build` returns it.
        path: a checkpoint of this project or of TensorFlow 1 (see `checkpoints.find`), the paper's `.npz`, for the
            nets of Keras Applications the `.h5` or `.weights.h5` of the net without its top, or for the nets that say
            in PUBLISHED how to read it a `.npz` or `.safetensors` (see `load_published`).

    Returns: names of what the file holds beside the body, as of a head, a list; see `unused`.

    Raises:
        InputError: nothing there, weights that do not fit the body, or more of them in its scope than it has.
    """
    body = named_variables(network.body)
    # The exponent of a pooling is no part of any net that is published.
    variables = {name: variable for name, variable in body.items() if name != 'gem/p'}
    layout = published_layout(network.body.name)
    if layout and path.endswith(weight_files.ENDINGS):
        return load_published(path, variables, layout)
    if path.endswith('.npz'):
        load_trinet(path, variables)
        return []
    weight_files.refuse_pytorch(path)
    if path.endswith('.safetensors'):
        raise InputError(f'{path}: the net {network.body.name} takes no weights of this format.')
    if path.endswith('.h5'):
        load_keras(path, network.body)
        return []
    path = checkpoints.find(path)
    if 'gem/p' in body and 'gem/p' in checkpoints.open_reader(path).get_variable_to_shape_map():
        variables = body
    scopes = {'gem', *(name.split('/')[0] for name in body)}
    beside = unused(path, variables)
    of_body = [name for name in beside if name.split('/')[0] in scopes]
    if of_body:
        raise InputError(f'{path} holds {listed(of_body)}, which the net {network.body.name} as it is built here does '
                         f'not have: choose --model_name and --pooling as that net was trained with.')
    load_checkpoint(path, variables, layout)
    return beside


def load_checkpoint(path, variables, layout):
    """Assign the weights of a checkpoint; position embeddings of images of another size are resampled.

    Args:
        path: as `checkpoints.find` returns it.
        variables: {TensorFlow 1 name: variable} of a body.
        layout: see `published_layout`.

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
    """Names of the variables of layers that a checkpoint holds and a model has not, sorted.

    Not among them: what is no layer's (global_step, Adam's powers: they have no scope), slots of optimizers and moving
    averages (…/weights/RMSProp: their scope is a variable itself), and what is known to be beside body and head.

    Args:
        path: as `checkpoints.find` returns it.
        variables: {TensorFlow 1 name: variable} of the model.
    """
    held = checkpoints.open_reader(path).get_variable_to_shape_map()
    return sorted(name for name in held if name not in variables and '/' in name
                  and name.rpartition('/')[0] not in held and not KNOWN_BESIDE.search(name))


def listed(names):
    """The first of names, and how many more there are: 'a, b, c and 5 more'."""
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if names[3:] else '')


def load_keras(path, body):
    """Assign the weights that Keras distributes for a net of Keras Applications, in either of its formats.

    Args:
        path: `.h5` or `.weights.h5` of the net without its top.
        body: keras.Model of such a net; what it has beside the net of Keras stays as it is.

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
        # Keras takes what it needs out of a `.weights.h5`, and does not tell of the rest.
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


def published_layout(net_name):
    """Where the net of a name says how others publish its weights, or None: the module of nets/ that it calls PUBLISHED.

    Such a module has two functions and a pattern. They see names and shapes only; no array is read before all is known.
        options(held) -> {option of the net's `body`: value}: what a file tells of it.
        sources(held, wanted) -> {TF1 name: Source}: of which arrays each of the variables is made.
        BESIDE: compiled pattern of the names of what may be in a file beside them.
    Where the net has position embeddings, a grid [h, w, C] for one size of images, it also has
        POSITIONS: compiled pattern of their TF1 names.
        resized(grid, height, width) -> the grid for another size.
    held is {name: shape} of a file, wanted is {TF1 name: shape} of a body.
    """
    return getattr(plugins.load('nets', net_name), 'PUBLISHED', None) if net_name in plugins.choices('nets') else None


def published_options(net_name, path):
    """What the weights that others published for a net want of its `body`, {option: value}; of any other file nothing.

    Raises:
        InputError: a file that cannot be read.
    """
    weight_files.refuse_pytorch(path)
    layout = published_layout(net_name)
    return layout.options(weight_files.shapes(path)) if layout and path.endswith(weight_files.ENDINGS) else {}


def load_published(path, variables, layout):
    """Assign weights that others published.

    Args:
        path: `.npz` or `.safetensors`.
        variables: {TF1 name: variable} of a body.
        layout: see `published_layout`.

    Returns: names of what the file holds beside the body, a list.

    Raises:
        InputError: an unreadable file; what a variable needs is missing, of another shape or not finite; or the file
            holds what is neither needed nor known to be beside it. Nothing is assigned then.
    """
    # PyTorch's batch norms count their batches, which nothing reads.
    held = {name: shape for name, shape in weight_files.shapes(path).items() if not name.endswith('.num_batches_tracked')}
    sources = layout.sources(held, {name: tuple(variable.shape) for name, variable in variables.items()})
    needed = {name for source in sources.values() for name in source.names}
    unknown = {name: held[name] for name in held if name not in needed and not layout.BESIDE.search(name)}
    missing = [name for name in sorted(needed) if name not in held]
    problems = ([f'lacks {listed(missing)}'] if missing else []) + (
        [f'holds {listed(with_shapes(unknown))}, which this net has not'] if unknown else [])
    if problems:
        raise InputError(f'{path} does not fit --model_name and its options: it {" and it ".join(problems)}.')
    arrays, values, misshapen = weight_files.read(path, sorted(needed)), {}, []
    for name, variable in variables.items():
        source, shape = sources[name], tuple(variable.shape)
        try:
            values[name] = source.convert(shape, *(arrays[each] for each in source.names))
        except ValueError:  # No way from these shapes to that of the variable.
            pass
        if name not in values or values[name].shape != shape:
            of_file = listed(with_shapes({each: held[each] for each in source.names}))
            misshapen.append(f'{name} {shape} of {of_file}')
        elif not np.isfinite(values[name]).all():
            raise InputError(f'{path}: what becomes {name} is not finite everywhere.')
    if misshapen:
        raise InputError(f'{path} does not fit --model_name and its options: there is no way to make '
                         f'{listed(misshapen)}.')
    for name, variable in variables.items():
        variable.assign(values[name])
    return sorted(name for name in held if name not in needed)


def with_shapes(shapes):
    """{name: shape} as a list of texts."""
    return [f'{name} {tuple(shape)}' for name, shape in shapes.items()]


def load_trinet(path, variables):
    """Assign the weights that the paper's authors released for Theano to variables of the net `trinet`.

    Args:
        path: `.npz` with the arrays arr_0, arr_1, … of the net and its head `fc1024`.
        variables: {TensorFlow 1 name: variable}, e.g. of the net alone; what they do not need is left.

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
            raise InputError(f'{path}: what becomes {name} is not finite everywhere.')
    for name, variable in variables.items():
        variable.assign(values[name])


def _converted(name, array):
    """(name, value) of the variable that an array of the released weights becomes."""
    scope, _, kind = name.rpartition('/')
    if kind == 'inv_std':
        with np.errstate(divide='ignore'):
            return f'{scope}/moving_variance', np.float64(array) ** -2 - 1e-5
    if array.ndim == 4:
        return name, array.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
    return name, array

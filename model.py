"""Net and head become one Keras model, whose variables are known by their TensorFlow 1 names."""
import zipfile
import zlib

import keras
import numpy as np

import plugins
from errors import InputError
from nets import trinet


def build(net_name, head_name, embedding_dim, input_shape, **net_options):
    """Build a net with a head on top.

    Args:
        net_name: a choice of `nets/`.
        head_name: a choice of `heads/`.
        embedding_dim: D.
        input_shape: (H, W, 3); H and W may be None for the nets that end in a global average.
        net_options: keyword arguments of the net's `body`.

    Returns: keras.Model, images [B, H, W, 3] float32 of RGB 0..255 -> the endpoints, a dict with 'emb_raw' and 'emb',
        float32 [B, D] both, and what net and head have besides. Its attribute `body` is the keras.Model of the net
        alone, made of the very same layers.

    Raises:
        InputError: no such net or head, or a net that cannot take this input shape.
    """
    body = plugins.load('nets', net_name).body(input_shape, **net_options)
    endpoints = plugins.load('heads', head_name).head(body.output, embedding_dim)
    network = keras.Model(body.input, endpoints, name=f'{net_name}_{head_name}')
    network.body = body
    return network


def named_variables(network):
    """The variables of a model under their TensorFlow 1 names, {name: variable} in the order of `model.variables`.

    A name follows from its layer by a rule: the layer's name is the TF1 scope with '.' for '/', and TF-Slim says
    `weights` (`depthwise_weights`) and `biases` where Keras says `kernel` and `bias`.
    """
    named = {}
    for layer in network.layers:
        kernel = 'depthwise_weights' if isinstance(layer, keras.layers.DepthwiseConv2D) else 'weights'
        slim_names = {'kernel': kernel, 'bias': 'biases'}
        for variable in layer.weights:
            scope, _, name = variable.path.rpartition('/')
            named[f'{scope.replace(".", "/")}/{slim_names.get(name, name)}'] = variable
    return named


def load_trinet(path, variables):
    """Assign the weights that the paper's authors released for Theano to variables of the net `trinet`.

    Args:
        path: `.npz` with the arrays arr_0, arr_1, … of the net and its head `fc1024`.
        variables: {TensorFlow 1 name: variable}, e.g. of the net alone; what they do not need is left.

    Raises:
        InputError: an unreadable file, one array too many or too few, an array of another shape than its variable,
            or a variable that these weights do not have.
    """
    names, arrays = trinet.array_names(), _read_arrays(path)
    if len(arrays) != len(names):
        raise InputError(f'{path} holds {len(arrays)} arrays where the weights of the TriNet are {len(names)}.')
    values = dict(_converted(name, array) for name, array in zip(names, arrays))
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


def _read_arrays(path):
    """The arrays arr_0, arr_1, … of an `.npz`, a list; nothing is ever unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[f'arr_{i}'] for i in range(len(file.files))]
    except FileNotFoundError as error:
        raise InputError(f'There is no file {path}.') from error
    except KeyError as error:
        raise InputError(f'{path} holds arrays of other names than arr_0, arr_1, … without a gap.') from error
    # An array by itself, as of an .npy file, is no context manager (TypeError, AttributeError before Python 3.11).
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f'{path} is no readable .npz file of plain arrays: {error}.') from error


def _converted(name, array):
    """(name, value) of the variable that an array of the released weights becomes."""
    scope, _, kind = name.rpartition('/')
    if kind == 'inv_std':
        with np.errstate(divide='ignore'):
            return f'{scope}/moving_variance', np.float64(array) ** -2 - 1e-5
    if array.ndim == 4:
        return name, array.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
    return name, array

"""Net and head become one Keras model, whose variables are known by their TensorFlow 1 names."""
import concurrent.futures
import inspect
import re

import keras
import tensorflow as tf

from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import train_flags


def set_precision(precision):
    """Let the models that are built from now on compute in 'none' (float32), 'bfloat16' or 'float16'.

    Weights, batch norm statistics and embeddings are float32 in any case.
    """
    keras.config.set_dtype_policy('float32' if precision == 'none' else f'mixed_{precision}')


def build(net_name, head_name, embedding_dim, input_shape, **net_options):
    """Build a net with a head on top.

    Args:
        net_name: a choice of `nets/`.
        head_name: a choice of `heads/`.
        embedding_dim: D.
        input_shape: (H, W, 3); H and W may be None for the nets that end in a global average.
        net_options: keyword arguments of the net's `body`.

    Returns: keras.Model, images [B, H, W, 3] float32 of RGB 0..255 -> the endpoints, a dict with 'emb_raw' and 'emb',
        float32 [B, D] both, and further endpoints of net and head. Its attribute `body` is the keras.Model of the net
        alone, made of the same layers; `head_name` is the argument, `head_variables` are names.

    Raises:
        InputError: no such net or head, a net that cannot take this input shape, or does not know an option.
    """
    net = plugins.load('nets', net_name)
    unknown = [f'--{option}' for option in net_options if option not in inspect.signature(net.body).parameters]
    if unknown:
        raise InputError(f'The net {net_name} has no choice of {" and ".join(unknown)}.')
    # GPUs since Ampere would round the factors of float32 products to 10 bits. Only an explicit later setting turns that on.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    body = net.body(input_shape, **net_options)
    endpoints = plugins.load('heads', head_name).head(body.output, embedding_dim)
    network = keras.Model(body.input, endpoints, name=f'{net_name}_{head_name}')
    network.body, network.head_name = body, head_name
    body_names = named_variables(body)
    network.head_variables = [name for name in named_variables(network) if name not in body_names]
    return network


def build_for(args, input_size=None):
    """Call `build` for the arguments of `train.py`, perhaps for images of another (height, width)."""
    height, width = input_size or (args.net_input_height, args.net_input_width)
    return build(args.model_name, args.head_name, args.embedding_dim, (height, width, 3),
                 **train_flags.net_options(args))


def without_values(build, *args, **options):
    """Call a function that builds models, with variables of names and shapes but no values, in a tenth of the time.

    Keras keeps such variables in mind for each thread, and gives them values with the next model that is built in it:
    these are built in one of their own, where `set_precision` of another thread is unheard of.
    """
    def built():
        with keras.StatelessScope(initialize_variables=False):
            return build(*args, **options)

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(built).result()


def with_endpoints(network, functions):
    """Return the model of `build` with more endpoints: each function maps the endpoints to a dict of additional ones."""
    added = {}
    for function in functions:
        added |= function(network.output)
    if not added:
        return network
    extended = keras.Model(network.input, {**network.output, **added}, name=network.name)
    extended.body, extended.head_name, extended.head_variables = network.body, network.head_name, network.head_variables
    return extended


def named_variables(network):
    """Return the variables of a model under their TensorFlow 1 names, {name: variable} in the order of `model.variables`.

    A name follows from its layer by a rule: the layer's name is the TF1 scope with '.' for '/', and TF-Slim says
    `weights` (`depthwise_weights`) and `biases` where Keras says `kernel` and `bias`.
    """
    named = {}
    for layer in network.layers:
        kernel = 'depthwise_weights' if isinstance(layer, keras.layers.DepthwiseConv2D) else 'weights'
        slim_names = {'kernel': kernel, 'bias': 'biases'}
        for place, variable in enumerate(layer.weights):
            scope, _, name = variable.path.rpartition('/')
            # A variable without a name is one of all of them in this process, in Keras: here, one of its layer.
            name = f'variable_{place}' if re.fullmatch(r'variable(_\d+)?', name) else name
            named[f'{scope.replace(".", "/")}/{slim_names.get(name, name)}'] = variable
    return named

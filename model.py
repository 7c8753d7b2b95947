"""Net and head become one Keras model, whose variables are known by their TensorFlow 1 names."""
import keras

import plugins


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

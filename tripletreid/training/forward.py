"""How a training step runs the network: as it is, with recomputed activations, or with a frozen body."""
import keras
import tensorflow as tf

from tripletreid.modeling import recompute

ENDPOINTS = ('emb', 'emb_raw', 'metric_emb')  # Those that every training step reads.


def forward_functions(args, state):
    """Return {whether the body is frozen: function images [B, H, W, 3] -> dict of endpoints}, for training.

    The functions belong inside of a `tf.function`.

    Args:
        args: of `train.py`.
        state: `TrainState`.
    """
    names = [*ENDPOINTS, *state.objective_endpoints]
    plain = recompute.recomputing(state.network, names) if args.recompute else state.network
    functions = {False: lambda images: plain(images, training=True)}
    if args.freeze_body_iterations:
        functions[True] = with_frozen_body(state.network, names)
    return functions


def with_frozen_body(network, names):
    """Return a function that runs the body as for embedding, and only the layers on top of it as in training.

    Neither gradients nor statistics of the batch reach the body.

    Args:
        network: as `model.build` returns it.
        names: of the endpoints that the function returns, where the network has them.
    """
    ends = {name: network.output[name] for name in names if name in network.output}
    body_names = {id(tensor): name for name, tensor in network.body.output.items()}
    # Endpoints may be one tensor under several names, which Keras cannot have twice among the outputs of a model.
    head_ends = list({id(tensor): tensor for tensor in ends.values() if id(tensor) not in body_names}.values())
    head = keras.Model([network.body.output[name] for name in body_names.values()], head_ends) if head_ends else None

    def forward(images):
        features = network.body(images, training=False)
        values = {key: tf.stop_gradient(features[name]) for key, name in body_names.items()}
        if head:
            outputs = tf.nest.flatten(head(list(values.values()), training=True))
            values |= {id(tensor): output for tensor, output in zip(head_ends, outputs)}
        return {name: values[id(tensor)] for name, tensor in ends.items()}

    return forward

"""Activation recomputation (Chen et al., arXiv 1604.06174): activations for gradients are computed again instead of kept.

A network is cut where a single tensor connects its earlier and its later part, as between the residual units of a
ResNet or the blocks of a transformer. Only these tensors are kept; a part between two of them runs once more when the
gradient comes to it.
"""
import keras
import tensorflow as tf

from tripletreid.errors import InputError

# How many a part has at least: a bottleneck unit, a block of a transformer.
KERNELS = 3


def recomputing(network, names):
    """Return a function that computes the same as a network in training, except for rounding, and keeps fewer activations.

    The random numbers of a part are the same in both runs, and its moving statistics move once. TensorFlow may fuse
    operations between which nothing is kept, which rounds differently: in transformers it does; a ResNet's results
    have the same bits on a CPU.

    Args:
        network: as `model.build` or `model.with_endpoints` returns it.
        names: of the needed endpoints.

    Returns: function (images, training=True) -> dict of these endpoints. It belongs inside of a `tf.function`.

    Raises:
        InputError: a net that cannot be cut.
    """
    needed = {name: network.output[name] for name in names if name in network.output}
    # Endpoints may be one tensor under several names, which Keras cannot have twice among the outputs of a part.
    ends = list({id(tensor): tensor for tensor in needed.values()}.values())
    places = {name: [id(end) for end in ends].index(id(tensor)) for name, tensor in needed.items()}
    cuts = cuts_of(ends)
    if not cuts:
        raise InputError(f'--recompute: the net {network.body.name} has no place where a single tensor connects its parts, '
                         f'so nothing can be recomputed. Remove the flag.')
    parts = [keras.Model(start, end) for start, end in zip([network.input, *cuts], cuts)]
    rest = keras.Model(cuts[-1], ends)

    def forward(images, training=True):
        net = images
        for part in parts:
            net = _run(part, net)
        outputs = tf.nest.flatten(rest(net, training=training))
        return {name: outputs[place] for name, place in places.items()}

    return forward


def _run(part, inputs):
    """Return the output of a model in training, of which nothing is kept for the gradients but the inputs."""
    learned = [variable for variable in part.variables if variable.trainable]
    # Read before anything changes, so that the second run sees the same values.
    others = [(variable, tf.identity(variable.value)) for variable in part.variables if not variable.trainable]
    moved = []

    def pure(inputs, *values):
        with keras.StatelessScope(state_mapping=[*zip(learned, values), *others]) as scope:
            before = [scope.get_current_value(variable) for variable, _ in others]
            outputs = part(inputs, training=True)
        if not moved:
            for (variable, _), value in zip(others, before):
                if scope.get_current_value(variable) is not value:
                    variable.assign(scope.get_current_value(variable))
            moved.append(True)
        return outputs

    return tf.recompute_grad(pure)(inputs, *(tf.convert_to_tensor(variable.value) for variable in learned))


def cuts_of(ends):
    """List the tensors at which to cut a functional model that ends in these tensors, from the start on."""
    nodes, last_use = _in_order(ends), {}
    for place, node in enumerate(nodes):
        last_use |= {id(tensor): place for tensor in node.input_tensors}
    last_use |= {id(tensor): len(nodes) for tensor in ends}
    cuts, kernels, alive = [], 0, {}
    for place, node in enumerate(nodes[:-1]):
        alive |= {id(tensor): tensor for tensor in node.output_tensors}
        alive = {key: tensor for key, tensor in alive.items() if last_use.get(key, place) > place}
        kernels += sum(len(variable.shape) > 1 for variable in getattr(node.operation, 'variables', []))
        # An endpoint itself is no place to cut: a Keras model cannot return its own input.
        if len(alive) == 1 and kernels >= KERNELS and not set(alive) & {id(tensor) for tensor in ends}:
            cuts, kernels = [*cuts, *alive.values()], 0
    return cuts


def _in_order(ends):
    """Return the nodes of the graph from which tensors come, each after the nodes that it depends on."""
    nodes, seen, stack = [], set(), [(tensor, False) for tensor in reversed(ends)]
    while stack:
        tensor, is_computable = stack.pop()
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if is_computable:
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((tensor, True))
            stack += [(each, False) for each in node.input_tensors]
    return nodes

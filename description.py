"""What a checkpoint holds, and which net and head it fits."""
import math
import os

import keras

import arguments
import checkpoints
import model
import plugins
from errors import InputError

DEFAULT_SIZE = (256, 128)
OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'


def describe(path):
    """Describe a checkpoint, line by line.

    Args:
        path: anything that `checkpoints.find` understands, such as an experiment root or a file of TF-Slim.

    Yields: all tensors with their types and shapes first, what they mean last.

    Raises:
        InputError: nothing there, or no checkpoint.
    """
    path = checkpoints.find(path)
    reader = checkpoints.open_reader(path)
    held = {name: tuple(shape) for name, shape in sorted(reader.get_variable_to_shape_map().items())}
    types = reader.get_variable_to_dtype_map()
    for name, shape in held.items():
        yield f'{name} {types[name].name} {list(shape)}'
    size = sum(math.prod(shape) * types[name].size for name, shape in held.items())
    version = 'V2' if os.path.isfile(f'{path}.index') else 'V1'
    yield ''
    yield f'checkpoint: {path}, {len(held)} tensors, {size / 1e6:.1f} MB, format {version}'
    if OBJECT_GRAPH in held:
        yield 'It is of the object-based kind (tf.train.Checkpoint), which does not go by names and is not read here.'
        return

    explained = {'global_step'} & held.keys()
    if explained:
        yield f'step: {int(checkpoints.read(path, {"global_step": ()})["global_step"])}'
    size_of = _sizes_trained_with(os.path.dirname(path))
    # Inside of this scope variables have names and shapes, but no values: models cost a tenth of their time.
    with keras.StatelessScope(initialize_variables=False):
        nearest, nearest_share = None, 0
        for net in plugins.choices('nets'):
            body = plugins.load('nets', net).body((*size_of.get(net, DEFAULT_SIZE), 3))
            needed = _shapes(body)
            share = len(needed.keys() & held.keys()) / len(needed)
            if share == 1:
                heads, head_names = _fitting_heads(body, held)
                explained |= needed.keys() | head_names
                yield f'net: {net}, all of its {len(needed)} variables{_other_shapes(needed, held)}'
                yield f'head: {" or ".join(heads) or "none that fits, so this is good for --initial_checkpoint"}'
            elif share > nearest_share:
                missing = [name for name in needed if name not in held]
                nearest, nearest_share = f'{net} lacks {len(missing)} of {len(needed)}, as {missing[0]}', share
    if not explained - {'global_step'}:
        yield f'net: none of nets/{f"; the nearest, {nearest}" if nearest else ""}'

    adam = {f'{name}/{slot}' for name in explained for slot in ('Adam', 'Adam_1')} | {'beta1_power', 'beta2_power'}
    adam &= held.keys()
    yield f"optimizer: {f'Adam with the moments of {len(adam) // 2 - 1} variables' if adam else 'none of Adam'}"
    others = [name for name in held if name not in explained | adam]
    if others:
        yield f'besides: {len(others)} tensors, such as {", ".join(others[:5])}'


def _sizes_trained_with(root):
    """{net: (height, width) of its images} by the args.json beside a checkpoint, if there is one."""
    try:
        args, _ = arguments.load(root or '.')
    except InputError:
        return {}
    return {args.model_name: (args.net_input_height, args.net_input_width)}


def _shapes(network):
    return {name: tuple(variable.shape) for name, variable in model.named_variables(network).items()}


def _other_shapes(needed, held):
    names = [name for name, shape in needed.items() if held[name] != shape]
    return f' (of another shape: {", ".join(names)})' if names else ''


def _fitting_heads(body, held):
    """The heads whose variables are held, with their shapes: (descriptions, names of their variables).

    Some heads have less variables than others or none: those count that explain the most.
    """
    features = body.output['model_output'].shape[-1]
    embedding_dim = held['emb/weights'][-1] if 'emb/weights' in held else features
    of_body, names_of = _shapes(body), {}
    for head in plugins.choices('heads'):
        endpoints = plugins.load('heads', head).head(body.output, embedding_dim)
        needed = _shapes(keras.Model(body.input, endpoints))
        own = {name: shape for name, shape in needed.items() if name not in of_body}
        if all(held.get(name) == shape for name, shape in own.items()):
            names_of[head] = set(own)
    most = max(map(len, names_of.values()), default=0)
    heads = [head for head, names in names_of.items() if names and len(names) == most]
    return [f'{head} ({embedding_dim} dimensions)' for head in heads], set().union(*(names_of[head] for head in heads))

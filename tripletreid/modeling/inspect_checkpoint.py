"""The content of a checkpoint, and the net and the head that it fits."""
import inspect
import math
import os
from typing import NamedTuple

import keras

from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, checkpoints, train_flags
from tripletreid.modeling import model

DEFAULT_SIZE = (256, 128)
OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'


class NetFit(NamedTuple):
    """A net that a checkpoint may be of.

    net: a choice of nets/.
    options: keyword arguments of its `body`.
    needed: {TF1 name: shape} of its variables.
    missing: names that the checkpoint lacks.
    misshapen: names that have other shapes there.
    heads: {choice of heads/ that fits: embedding dimension}; those that explain the most variables.
    variables: names of all variables of the net and of these heads.
    """
    net: str
    options: dict
    needed: dict
    missing: list
    misshapen: list
    heads: dict
    variables: set


def describe(path):
    """Describe a checkpoint in lines of text.

    Args:
        path: anything that `checkpoints.find` understands, such as an experiment root or a file of TF-Slim.

    Returns: lines of text, a list: first all tensors with their types and shapes, then their meaning.

    Raises:
        InputError: nothing there, or no checkpoint.
    """
    path = checkpoints.find(path)
    reader = checkpoints.open_reader(path)
    held = {name: tuple(shape) for name, shape in sorted(reader.get_variable_to_shape_map().items())}
    types = reader.get_variable_to_dtype_map()
    size = sum(math.prod(shape) * types[name].size for name, shape in held.items())
    version = 'V2' if os.path.isfile(f'{path}.index') else 'V1'
    lines = [f'{name} {types[name].name} {list(shape)}' for name, shape in held.items()]
    lines += ['', f'checkpoint: {path}, {len(held)} tensors, {size / 1e6:.1f} MB, format {version}']
    if OBJECT_GRAPH in held:
        return [*lines, 'It is of the object-based kind (tf.train.Checkpoint), which does not go by names and is not '
                'read here.']
    if 'global_step' in held:
        step = checkpoints.read(path, {'global_step': ()})['global_step']
        lines.append(f'step: {step}')

    about_nets, variables = model.without_values(_describe_nets, held, _trained_with(os.path.dirname(path)))
    lines += about_nets
    moments = {name for name in variables if f'{name}/Adam' in held and f'{name}/Adam_1' in held}
    momenta = {name for name in variables if f'{name}/Momentum' in held}
    averaged = variables if all(name + checkpoints.AVERAGE in held for name in variables) else {}
    if momenta:
        lines.append(f'optimizer: SGD with the momentum of {len(momenta)} variables')
    else:
        lines.append(f'optimizer: {f"Adam with the moments of {len(moments)} variables" if moments else "none of Adam"}')
    if averaged:
        lines.append(f'average over the steps (--ema): of {len(averaged)} variables')

    powers = {'beta1_power', 'beta2_power'}
    if 'identity_names' in held:
        lines.append(f'training identities: {held["identity_names"][0]}, with their names')

    explained = {*variables, 'global_step', 'identity_names', *powers, *(f'late_{name}' for name in powers)}
    explained |= {f'{name}/{slot}' for name in moments for slot in ('Adam', 'Adam_1')}
    explained |= {f'{name}/Momentum' for name in momenta} | {name + checkpoints.AVERAGE for name in averaged}
    others = [name for name in held if name not in explained]
    if others:
        lines.append(f'besides: {len(others)} tensors, such as {", ".join(others[:5])}')
    return lines


def _describe_nets(held, trained):
    """Describe the nets all of whose variables are held, with the heads that fit: (lines of text, names of the variables).

    The net of the training comes first; where it fits, no other net is built.

    Args:
        held: {name: shape} of a checkpoint.
        trained: arguments of its training, as far as known, or None.
    """
    lines, variables, nearest = [], set(), (0, '')
    for net in sorted(plugins.choices('nets'), key=lambda name: not trained or name != trained.model_name):
        fit = fit_net(net, held, trained)
        if fit is None:
            continue
        if fit.missing:
            fraction = 1 - len(fit.missing) / len(fit.needed)
            nearest = max(nearest, (fraction, f'{net} lacks {len(fit.missing)} of {len(fit.needed)}, such as '
                                              f'{fit.missing[0]}'))
            continue
        variables |= fit.variables
        lines.append(f'net: {net}{" --pooling gem" if fit.options.get("pooling") == "gem" else ""}, all of its '
                     f'{len(fit.needed)} variables'
                     + (f' (of another shape: {", ".join(fit.misshapen)})' if fit.misshapen else ''))
        heads = [f'{head} ({dim} dimensions)' for head, dim in fit.heads.items()]
        lines.append(f'head: {" or ".join(heads) or "none that fits, so this is good for --initial_checkpoint"}')
        if trained and trained.model_name == net and not fit.misshapen:
            break
    if not lines:
        lines.append('net: none of nets/' + (f'; the nearest, {nearest[1]}' if nearest[0] else ''))
    return lines, variables


def fit_net(net, held, trained=None, size=DEFAULT_SIZE):
    """Compare a net with a checkpoint. Call it through `model.without_values`.

    Args:
        net: a choice of nets/.
        held: {name: shape} of the checkpoint.
        trained: arguments of its training, as far as known, or None.
        size: (height, width) of the images, unless the training's is known.

    Returns: `NetFit`, or None where the net cannot be built.
    """
    build = plugins.load('nets', net).body
    # The one option that many nets have and that shows in variables; a stride has none.
    is_gem = 'gem/p' in held and 'pooling' in inspect.signature(build).parameters
    options = {'pooling': 'gem'} if is_gem else {}
    if trained and trained.model_name == net:
        size, options = (trained.net_input_height, trained.net_input_width), train_flags.net_options(trained)
    try:
        body = build((*size, 3), **options)
    except InputError:  # A transformer has no such pooling.
        return None
    needed = _shapes(body)
    missing = [name for name in needed if name not in held]
    misshapen = [name for name, shape in needed.items() if name in held and held[name] != shape]
    heads, names = ({}, set()) if missing else _fitting_heads(body, held)
    return NetFit(net, options, needed, missing, misshapen, heads, needed.keys() | names)


def _trained_with(root):
    """Return the arguments of the args.json next to a checkpoint, or None if there is none."""
    try:
        return arguments.load(root or '.')[0]
    except InputError:
        return None


def _shapes(network):
    return {name: tuple(variable.shape) for name, variable in model.named_variables(network).items()}


def _fitting_heads(body, held):
    """Find the heads whose variables are held, with their shapes: ({head: dimension}, names of their variables).

    Some heads have fewer variables than others or none: the heads that explain the most count.
    """
    features = body.output['model_output'].shape[-1]
    body_shapes, names_of, dims = _shapes(body), {}, {}
    for head in plugins.choices('heads'):
        dims[head] = next((held[name][-1] for name in ('emb/weights', 'fc/weights') if name in held), features)
        endpoints = plugins.load('heads', head).head(body.output, dims[head])
        needed = _shapes(keras.Model(body.input, endpoints))
        own = {name: shape for name, shape in needed.items() if name not in body_shapes}
        if all(held.get(name) == shape for name, shape in own.items()):
            names_of[head] = set(own)
    most = max(map(len, names_of.values()), default=0)
    heads = {head: dims[head] for head, names in names_of.items() if names and len(names) == most}
    return heads, set().union(*(names_of[head] for head in heads))

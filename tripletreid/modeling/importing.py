"""A published file of weights as a model: the settings that it implies, and the network with its weights."""
import difflib
import inspect
import os
from typing import NamedTuple

import numpy as np

from tripletreid import plugins
from tripletreid.errors import InputError
from tripletreid.experiment import arguments, checkpoints, train_flags
from tripletreid.modeling import inspect_checkpoint, model, pretrained, published, weight_files
from tripletreid.modeling.pixel_statistics import PIXEL_STATISTICS

KERAS_NETS = ('convnext_tiny', 'densenet121', 'resnet50', 'resnet50_mid')


class Setting(NamedTuple):
    """The value of one of train.py's flags, and where it comes from."""
    value: object
    reason: str


class Plan(NamedTuple):
    """The kind of a file and its settings.

    path: of the file.
    kind: of the file, in words.
    settings: {name of a flag of train.py: Setting}.
    """
    path: str
    kind: str
    settings: dict

    def values(self):
        """Return {name of a flag: value}."""
        return {name: setting.value for name, setting in self.settings.items()}


def plan(path, given, origin=None):
    """Find the settings of a published model.

    Args:
        path: of the file.
        given: {name of a flag of train.py: value} that the user chose; these take precedence.
        origin: a choice of origins/, or None for the one that recognises the file.

    Returns: `Plan`.

    Raises:
        InputError: a file that cannot be read, or that is for no net of nets/ or for several.
    """
    weight_files.refuse_pytorch(path)
    if os.path.isdir(path) and os.path.isfile(os.path.join(path, arguments.FILE)):
        raise InputError(f'{path} is an experiment root already: use it as it is.')
    if path.endswith(weight_files.ENDINGS) and 'arr_0' not in (held := published.shapes(path)):
        kind, found = _plan_published(path, held, given, origin)
    elif origin:
        raise InputError(f'--origin has no effect on {path}: it is for files of {" and ".join(weight_files.ENDINGS)}.')
    elif path.endswith('.npz'):
        found = {'model_name': 'trinet', 'head_name': 'fc1024', 'embedding_dim': 128, 'metric': 'euclidean'}
        kind, found = "the paper's own weights", _with_reason(found, 'known of this format')
    elif path.endswith(('.h5', '.keras')):
        kind, found = _plan_keras(path, given)
    else:
        kind, found = _plan_checkpoint(checkpoints.find(path), given)
    found |= {name: Setting(value, 'given') for name, value in given.items()}
    body = plugins.load('nets', found['model_name'].value).body
    options = [name for name in found if name in train_flags.NET_OPTIONS]
    for name in options:  # An origin's ResNets have options that its other nets do not have.
        if name not in inspect.signature(body).parameters and name not in given:
            del found[name]
    if 'embedding_dim' not in found:
        size = (found[f'net_input_{side}'].value if f'net_input_{side}' in found else default
                for side, default in zip(('height', 'width'), inspect_checkpoint.DEFAULT_SIZE))
        built = model.without_values(body, (*size, 3), **{name: found[name].value for name in options if name in found})
        found['embedding_dim'] = Setting(built.output['model_output'].shape[-1], 'the features of the net')
    return Plan(path, kind, found)


def _with_reason(settings, reason):
    return {name: Setting(value, reason) for name, value in settings.items()}


def _plan_published(path, held, given, origin):
    """Return (kind, {flag: Setting}) of a file with PyTorch's or JAX's names."""
    net = given.get('model_name')
    nets = published.find_net(held, [net] if net else None)
    if net and net not in nets:
        others = published.sentence_of_nets(held)
        raise InputError(f'{path} does not fit the net {net}. {others}')
    if not nets:
        raise InputError(f'{path}: {published.sentence_of_nets(held)}')
    if len(nets) > 1:
        raise InputError(f'{path} fits {" and ".join(nets)}: choose one of them by --model_name.')
    (net, prefix), = nets.items()
    layout = published.layout_of(net)
    name = origin or _origin(held, prefix)
    known = plugins.load('origins', name)
    found = _with_reason({'model_name': net, **layout.options(held, prefix), **layout.input_size(held, prefix)},
                         'read from the file')
    found |= _with_reason(known.SETTINGS, f'known of {name}')
    found |= _with_reason(getattr(known, 'options', lambda *_: {})(held, prefix), 'read from the file')
    found |= _head(path, held, prefix, [given['head_name']] if 'head_name' in given else known.HEADS)
    found |= _pixels(path, held)
    return f'weights of {name}' if name != 'plain' else 'weights without a known head', found


def _origin(held, prefix):
    """Return the name of the one origin that recognises a file, or 'plain'."""
    found = [name for name in plugins.choices('origins') if plugins.load('origins', name).recognises(held, prefix)]
    if len(found) > 1:
        raise InputError(f'The file may come from {" or ".join(found)}: choose by --origin.')
    return found[0] if found else 'plain'


def _head(path, held, prefix, heads):
    """Return the settings of the first of some heads that a file holds."""
    for head in heads:
        modules = published.find_head(held, prefix, head)
        if modules is not None:
            dim = {'embedding_dim': held[f'{list(modules.values())[-1]}.weight'][0]} if modules else {}
            return _with_reason({'head_name': head, **dim}, 'read from the file')
    raise InputError(f'{path} holds no head {" or ".join(heads)}.')


def _pixels(path, held):
    """Return the setting of --pixels that stored statistics imply.

    Raises:
        InputError: there is no such normalisation here.
    """
    names = [name for kind in ('mean', 'std') for name in held if name.endswith(f'pixel_{kind}')]
    if len(names) != 2:
        return {}
    arrays = weight_files.read(path, names)
    mean, std = (arrays[name].reshape(-1) for name in names)
    for pixels, statistics in PIXEL_STATISTICS.items():
        if len(mean) == 3 and np.allclose([mean, std], statistics, rtol=1e-3):
            return {'pixels': Setting(pixels, 'read from the file')}
    raise InputError(f'{path} normalises pixels by mean {mean.tolist()} and standard deviation {std.tolist()}, for which '
                     f'there is no choice of --pixels.')


def _plan_keras(path, given):
    if 'model_name' not in given:
        raise InputError(f'{path} is a file of Keras, which does not name its net: add --model_name, one of '
                         f'{", ".join(KERAS_NETS)}.')
    found = {'head_name': 'features', 'resize': 'bilinear', 'jpeg': 'accurate', 'metric': 'cosine'}
    return 'weights of Keras Applications', {'model_name': Setting(given['model_name'], 'given'),
                                             **_with_reason(found, 'known of this format')}


def _plan_checkpoint(path, given):
    """Return (kind, {flag: Setting}) of a TensorFlow checkpoint, such as TF-Slim's or a run's without args.json."""
    held = {name: tuple(shape) for name, shape in
            checkpoints.open_reader(path).get_variable_to_shape_map().items()}
    scopes = {name.split('/')[0].lower() for name in held}
    nets = [given['model_name']] if 'model_name' in given else sorted(
        plugins.choices('nets'), key=lambda net: -max(difflib.SequenceMatcher(None, net, scope).ratio() for scope in scopes))
    size = tuple(given.get(f'net_input_{side}', default)
                 for side, default in zip(('height', 'width'), inspect_checkpoint.DEFAULT_SIZE))
    for net in nets:
        fitting = model.without_values(inspect_checkpoint.fit_net, net, held, size=size)
        if fitting and not (fitting.missing or fitting.misshapen):
            head, dim = next(iter(fitting.heads.items()), ('features', None))
            found = {'model_name': net, 'head_name': head, **({'embedding_dim': dim} if dim else {}), **fitting.options}
            return 'a TensorFlow checkpoint', {**_with_reason(found, 'read from the file'),
                                               'metric': Setting('euclidean', 'known of this format')}
    raise InputError(f'{path} is a checkpoint of no net of {"nets/" if len(nets) > 1 else nets[0]}; python freeze.py '
                     f'--describe {path} lists its content.')


def load(plan, args):
    """Build the network of a plan and assign the file's weights.

    Args:
        plan: `Plan`.
        args: train.py's arguments for it.

    Returns: (network, names of arrays of the file that are not used).

    Raises:
        InputError: as `published.load` and `pretrained.load_body`.
    """
    network = model.build_for(args)
    return network, pretrained.load_body_and_head(network, plan.path)

"""Weights that others published: the net and the head that a file is for, the prefix of their names, and reading them.

A file holds a body under some prefix (`module.backbone.`), perhaps a head, and layers that are not needed here, such as
classifiers. The modules of nets/ and heads/ describe how others name the weights:

    nets/NAME.py    PUBLISHED   a module of nets/ that describes a layout (below)
                    SIGNATURES  dicts {name: shape}, one for each way to store the net: arrays that no other net has so
    heads/NAME.py   PUBLISHED   dicts {TF1 scope: their module}, one for each code base that has this head

A layout has two lists of names and four functions. They see names and shapes only; arrays are read when everything fits.
    ANCHORS                           names of the first array of a body, whose prefix is the prefix of all names
    options(held, prefix)             {option of the net's `body`: value} that the file implies
    sources(held, prefix, wanted)     {TF1 name: Source}: the arrays that each variable is made of
    OPTIONAL                          names of arrays that belong to a body of this layout, but not to every one
    is_unneeded(name, held, prefix)     whether an array is known not to belong to the body
    input_size(held, prefix)          {'net_input_height', 'net_input_width', …} that the file implies, perhaps nothing
A net with position embeddings, a grid [h, w, C] for one size of images, also has
    POSITIONS                         compiled pattern of their TF1 names
    resized(grid, height, width)      the grid for another size
held is {name: shape} of a file, wanted is {TF1 name: shape} of a body.
"""
import re
from typing import NamedTuple

import numpy as np

from tripletreid import plugins
from tripletreid.errors import InputError, listed, warn
from tripletreid.modeling import weight_files
from tripletreid.modeling.model import named_variables, without_values
from tripletreid.modeling.torch_names import KINDS, ZEROS, Source, from_torch

DEFAULT_SIZE = (256, 128)
# Prefixes of averages over the steps of a training, when a file holds two copies of a net.
AVERAGED = re.compile(r'(^|[._/])(teacher|ema|momentum|average[d]?)([._/]|$)')
COUNTERS = '.num_batches_tracked'  # PyTorch's batch norms count their batches; nothing reads that.
# fast-reid stores its normalisation of pixels.
PIXEL_STATISTICS = re.compile(r'(^|\.)pixel_(mean|std)$')


class Fit(NamedTuple):
    """How well a file fits a body: nothing missing, misshapen or foreign is a complete fit.

    prefix: of the names in the file.
    sources: {TF1 name: Source}, with full names.
    missing: names that the body needs and the file lacks.
    misshapen: texts, variables that the file has no way to make.
    foreign: names of arrays in the scopes of the body that it does not have.
    """
    prefix: str
    sources: dict
    missing: list
    misshapen: list
    foreign: list

    @property
    def is_complete(self):
        return not (self.missing or self.misshapen or self.foreign)


def layout_of(net_name):
    """Return the layout in which others publish a net's weights (see above), or None."""
    return getattr(plugins.load('nets', net_name), 'PUBLISHED', None) if net_name in plugins.choices('nets') else None


def shapes(path):
    """Return {name: shape} of a file of weights, without PyTorch's counters.

    Raises:
        InputError: as `weight_files.shapes`.
    """
    return {name: shape for name, shape in weight_files.shapes(path).items() if not name.endswith(COUNTERS)}


def fit(held, layout, wanted):
    """Compare a file with a body under the prefix that leaves the least missing.

    Args:
        held: {name: shape} of the file.
        layout: see above.
        wanted: {TF1 name: shape} of the body.

    Returns: `Fit`.

    Raises:
        InputError: several copies of the body fit, and none of them is an average.
    """
    found = []
    for prefix in _prefixes(held, layout) or ['']:
        sources = layout.sources(held, prefix, wanted)
        needed = {name for source in sources.values() for name in source.names}
        found.append(Fit(prefix, sources, sorted(needed - held.keys()), [], []))
    least = min(len(each.missing) for each in found)
    best = _chosen([each for each in found if len(each.missing) == least])
    needed = {name for source in best.sources.values() for name in source.names}
    scopes = {_scope(name, best.prefix) for name in needed} | set(layout.OPTIONAL)
    foreign = [name for name in held if name not in needed and name.startswith(best.prefix)
               and _scope(name, best.prefix) in scopes and not layout.is_unneeded(name, held, best.prefix)]
    return best._replace(misshapen=[] if best.missing else _misshapen(held, best.sources, wanted), foreign=foreign)


def _prefixes(held, layout):
    """Return all prefixes, '' included, under which a file has one of the first arrays of a body."""
    found = {name.removesuffix(anchor) for anchor in layout.ANCHORS for name in held if name.endswith(anchor)}
    return sorted(prefix for prefix in found if prefix[-1:] in ('', '.', '/'))


def _scope(name, prefix):
    return re.split(r'[./]', name.removeprefix(prefix))[0]


def _chosen(fits):
    averaged = [each for each in fits if AVERAGED.search(each.prefix)]
    if len(fits) == 1 or fits[0].missing:
        return fits[0]
    if len(averaged) == 1:
        return averaged[0]
    raise InputError(f'The file holds {len(fits)} copies of the net, under {" and ".join(each.prefix for each in fits)}: '
                     f'keep one of them in the file.')


def _misshapen(held, sources, wanted):
    misshapen = []
    for name in wanted:  # In the order of the net: a layout may list its sources in any order.
        if name not in sources:
            continue
        source = sources[name]
        try:
            # Arrays of zeros that take no memory, since only shapes matter.
            arrays = [np.broadcast_to(np.float32(0), held[each]) for each in source.names]
            fits = source.convert(wanted[name], *arrays).shape == tuple(wanted[name])
        except (ValueError, IndexError, KeyError):
            fits = False
        if not fits:
            described = ', '.join(with_shapes({each: held.get(each, ()) for each in source.names}))
            misshapen.append(f'{name} {tuple(wanted[name])} of {described}')
    return misshapen


def find_net(held, nets=None):
    """Find the nets that a file fits completely.

    Args:
        held: {name: shape} of the file.
        nets: names of nets; None: all.

    Returns: {name of the net: prefix}.
    """
    found = {}
    for net in nets or plugins.choices('nets'):
        layout = layout_of(net)
        for prefix in _prefixes(held, layout) if layout else ():
            if any(all(held.get(prefix + name) == shape for name, shape in signature.items())
                   for signature in plugins.load('nets', net).SIGNATURES):
                wanted = _wanted(net, {**layout.options(held, prefix), **layout.input_size(held, prefix)})
                found_fit = wanted and fit(held, layout, wanted)
                if found_fit and found_fit.is_complete:
                    found[net] = found_fit.prefix
                break
    return found


def _wanted(net, options):
    """Return {TF1 name: shape} of a net, or None if the net refuses the options.

    options: of its `body`, and the size of images if that is not the default.
    """
    options = dict(options)
    size = [options.pop(f'net_input_{side}', default) for side, default in zip(('height', 'width'), DEFAULT_SIZE)]
    try:
        body = without_values(plugins.load('nets', net).body, (*size, 3), **options)
    except (InputError, TypeError):
        return None
    return _shapes(named_variables(body))


def options(net_name, path):
    """Return the options of a net's `body` that published weights imply, {option: value}; of any other file nothing.

    Raises:
        InputError: a file that cannot be read.
    """
    weight_files.refuse_pytorch(path)
    layout = layout_of(net_name)
    if not (layout and path.endswith(weight_files.ENDINGS)):
        return {}
    held = shapes(path)
    prefixes = _prefixes(held, layout)
    return layout.options(held, min(prefixes, key=len) if prefixes else '')


def load(path, variables, layout, net_name=None, head=None):
    """Assign published weights to the variables of a body, and perhaps of a head: all of them or none.

    Args:
        path: `.npz` or `.safetensors`.
        variables: {TF1 name: variable} of the body.
        layout: see above.
        net_name: of the net, for the message that names the net that the file is for.
        head: (choice of heads/, {TF1 name: variable} of it), or None for the body alone.

    Returns: names of arrays in the file that are not used, a list.

    Raises:
        InputError: an unreadable file; an array is missing, misshapen or not finite; or the file holds
            arrays in the scopes of the body that it does not have.
    """
    held = shapes(path)
    fitted = fit(held, layout, _shapes(variables))
    if not fitted.is_complete:
        raise InputError(_why_not(path, held, fitted, net_name))
    sources, variables = dict(fitted.sources), {name: variables[name] for name in fitted.sources}
    if head:
        modules = find_head(held, fitted.prefix, head[0])
        if modules is None:
            raise InputError(f'{path} holds no head {head[0]}.')
        head_part = head_sources(held, modules, head[1])
        misshapen = _misshapen(held, head_part, _shapes(head[1]))
        if misshapen:
            raise InputError(f'{path} does not fit the head {head[0]}: there is no way to make {listed(misshapen)}.')
        sources, variables = sources | head_part, variables | head[1]
    _assign(path, variables, sources)
    needed = {name for source in sources.values() for name in source.names}
    others = sorted(held.keys() - needed)
    unknown = [name for name in others if not layout.is_unneeded(name, held, fitted.prefix)
               and not PIXEL_STATISTICS.search(name)]
    if unknown:
        warn(f'{path} also holds {listed(unknown)}, which this net does not have. If its features pass through them, its '
             f'embeddings differ from the published ones.')
    return others


def _shapes(variables):
    return {name: tuple(variable.shape) for name, variable in variables.items()}


def sentence_of_nets(held):
    """Return a sentence that names the nets that a file is for."""
    nets = list(find_net(held))
    if nets:
        return f'It is a file of {" or ".join(nets)}: choose --model_name {nets[0]}.'
    return f'It is a file of no net of nets/: it holds {listed(with_shapes(held))}.'


def _why_not(path, held, fitted, net_name):
    """Say in one sentence why a file does not fit a net, and which net it is for."""
    other = [net for net in find_net(held) if net != net_name]
    if other:
        return f'{path} is not a file of this net but of {" or ".join(other)}: choose --model_name {other[0]}.'
    problems = [f'lacks {listed(fitted.missing)}'] if fitted.missing else []
    if fitted.foreign or fitted.missing and fitted.prefix == '':
        foreign = fitted.foreign or sorted(held)
        problems.append(f'holds {listed(with_shapes({name: held[name] for name in foreign}))}, which this net does not have')
    if fitted.misshapen:
        problems.append(f'has other shapes: there is no way to make {listed(fitted.misshapen)}')
    return f'{path} does not fit --model_name and its options, and no other net of nets/: it {" and it ".join(problems)}.'


def _assign(path, variables, sources):
    """Read arrays of a file and assign the values made of them.

    Args:
        path: of the file.
        variables: {TF1 name: variable}.
        sources: {TF1 name: Source}, which fit.

    Raises:
        InputError: an unreadable file, or a value that is not finite; nothing is assigned then.
    """
    needed = {name for source in sources.values() for name in source.names}
    arrays = weight_files.read(path, sorted(needed))
    values = {}
    for name, variable in variables.items():
        source = sources[name]
        values[name] = source.convert(tuple(variable.shape), *(arrays[each] for each in source.names))
        if not np.isfinite(values[name]).all():
            raise InputError(f'{path}: the value of {name} is not finite everywhere.')
    for name, variable in variables.items():
        variable.assign(values[name])


def with_shapes(shapes):
    """Return {name: shape} as a list of texts."""
    return [f'{name} {tuple(shape)}' for name, shape in shapes.items()]


def find_head(held, prefix, head_name):
    """Find a head in a file.

    Args:
        held: {name: shape} of the file.
        prefix: of the body's names; the head is in one of the modules that this names.
        head_name: a choice of heads/.

    Returns: {TF1 scope: module in the file}, or None where the file does not have the head. A head without weights is an
        empty dict.
    """
    outers = [prefix[:place] for place in range(len(prefix), -1, -1) if not place or prefix[place - 1] in './']
    for modules in getattr(plugins.load('heads', head_name), 'PUBLISHED', ({},)):
        for outer in outers:
            if all(f'{outer}{module}.weight' in held for module in modules.values()):
                return {scope: outer + module for scope, module in modules.items()}
    return None


def head_sources(held, modules, wanted):
    """Return {TF1 name: Source} of the variables of a head.

    Args:
        held: {name: shape} of the file.
        modules: as `find_head` returns it.
        wanted: names of the variables. Where the file lacks a bias, or the offset of a norm, it is 0.
    """
    found = {}
    for name in wanted:
        scope, _, kind = name.rpartition('/')
        array = f'{modules.get(scope, scope)}.{KINDS[kind]}'
        is_zero = array not in held and kind in ('biases', 'beta')
        found[name] = ZEROS if is_zero else Source((array,), from_torch)
    return found

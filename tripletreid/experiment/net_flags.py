"""Read the options of nets off the signatures of their `body`, without importing TensorFlow.

An option is an annotated keyword of `body` in nets/NAME.py, of the helper's function of which `body` is a
`functools.partial`, or of the method `body` of a helper's class. Its annotation is
`Annotated[type of argument_types or Literal choices, help]`.
"""
import ast
import functools
import typing

from tripletreid import argument_types, plugins


@functools.cache
def options_of_nets():
    """Return {option: list of its different annotations}, in the order of the net with the most options."""
    found = {}
    for options in sorted(map(options_of_net, plugins.choices('nets')), key=len, reverse=True):
        for name, annotation in options.items():
            if annotation not in found.setdefault(name, []):
                found[name].append(annotation)
    return found


def add_flags(add):
    """Add a flag for each option of nets through the `add_argument` of a parser or group.

    A flag that is not given takes the default of the net's `body`, or the value that published weights need.
    """
    for name, annotations in options_of_nets().items():
        kinds, helps = zip(*(typing.get_args(annotation) for annotation in annotations))
        choices = dict.fromkeys(choice for kind in kinds if typing.get_origin(kind) is typing.Literal
                                for choice in typing.get_args(kind))
        if choices:
            add(f'--{name}', type=type(next(iter(choices))), choices=tuple(choices), help='; '.join(helps))
        else:
            kind, = set(kinds)
            add(f'--{name}', type=kind, metavar='P' if kind.__name__ == 'fraction' else 'N', help='; '.join(helps))


def _signature(net):
    """Return (function definition of a net's `body`, names that a partial sets)."""
    tree = _tree(net)
    assigned = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == 'body']
    match assigned:
        case []:
            return _definition(tree, 'body'), set()
        case [ast.Call(args=[ast.Attribute(value=ast.Name(id=helper), attr=name), *_], keywords=keywords)]:
            # body = functools.partial(_helper.name, size=...)
            return _definition(_tree(helper), name), {keyword.arg for keyword in keywords}
        case [ast.Attribute(value=ast.Call(func=ast.Attribute(value=ast.Name(id=helper), attr=name)), attr=method)]:
            # body = _helper.Class(...).body
            return _definition(_definition(_tree(helper), name), method), set()
    raise ValueError(f'the body of nets/{net}.py is neither a function, nor a partial, nor a method of an object')


def _definition(tree, name):
    """Return the definition of a function or a class in a module or a class."""
    return next(node for node in tree.body if getattr(node, 'name', None) == name)


@functools.cache
def _tree(module):
    return ast.parse((plugins.HERE / 'nets' / f'{module}.py').read_text(encoding='utf-8'))


def options_of_net(net):
    """Return the options of a net, {name: annotation}."""
    function, names_set = _signature(net)
    names = {**vars(argument_types), **vars(typing), **vars(plugins.load_helper('nets', '_options'))}
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return {each.arg: eval(compile(ast.Expression(each.annotation), 'annotation', 'eval'), names)
            for each in arguments if each.annotation is not None and each.arg not in names_set}

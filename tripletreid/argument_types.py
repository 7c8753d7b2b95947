"""Parse command lines: the parser of every command, the types of values, and which flag needs which other.

A flag that has no effect without another one declares that where it is added:

    add('--momentum', type=fraction, needs='--optimizer sgd', help='momentum of sgd (default: 0.9)')

`--help`, the checks of `ArgumentParser.check_needs` and the docs follow from `needs`. Its forms:

    '--memory'                          --memory is on, i.e. neither unset nor 0, 'none' or an empty list
    '--classifier arcface|circle'       --classifier has one of these values
    '--lr_schedule step or --warmup'    one of the alternatives holds
    ('--loss', '--metric_weight')       all of them hold
    {'adamw': '--weight_decay'}         the value adamw needs --weight_decay, the other values need nothing
"""
import argparse
import difflib
import inspect
import itertools
import math
import re
import sys
import textwrap
from typing import NamedTuple

from tripletreid import exclusion, files
from tripletreid.errors import InputError, warn

LARGEST_INT = 2 ** 31 - 1  # The largest shape, step or seed of TensorFlow.
# Limits far above useful values; libraries abort instead of raising an error above them.
MOST_THREADS = 1024
LONGEST_SIDE = 16384
MOST_DIMENSIONS = 16384
MOST_PORTS = 65535
TERMS = 'docs/glossary.md explains the terms.'  # The last line of every help.


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that fits paragraphs and long lists of choices to the terminal; indented lines keep their breaks."""

    def _fill_text(self, text, width, indent):
        paragraphs = re.split(r'\n\n+', inspect.cleandoc(text))
        return '\n\n'.join(each if re.search('^ ', each, re.MULTILINE) else textwrap.fill(each, width)
                           for each in paragraphs)

    def _metavar_formatter(self, action, default_metavar):
        if self._lists_choices(action):
            return lambda size: ('NAME',) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action):
        choices = f'; one of {", ".join(action.choices)}' if self._lists_choices(action) else ''
        return f'{action.help}{choices}'

    def _lists_choices(self, action):
        return action.metavar is None and action.choices is not None and len(','.join(map(str, action.choices))) > 60


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser with an example below the help, errors of one sentence, and `needs` in `add_argument`.

    Flags cannot be abbreviated, because a flag that is added later would change the meaning of such a command line.

    Attributes:
        given: {name of a flag that the last parsed command line sets: its last position}.
    """

    def __init__(self, *, example=None, **options):
        """
        Args:
            example: command lines, as they are typed.
            options: options of argparse; the description is printed with its own line breaks.
        """
        self.given, self._needs = {}, {}
        lines = ['example:', *(f'  {line}' for line in example.splitlines()), ''] if example else []
        super().__init__(epilog='\n'.join([*lines, TERMS]), allow_abbrev=False,
                         formatter_class=HelpFormatter, **options)

    def add_argument(self, *names, needs=(), **options):
        """Add an argument as argparse does, with `needs` as the module's docstring describes it."""
        return self._add(super().add_argument, *names, needs=needs, **options)

    def add_argument_group(self, *args, **options):
        """Add a group as argparse does, whose `add_argument` takes `needs`."""
        group = super().add_argument_group(*args, **options)
        add_argument = group.add_argument
        group.add_argument = lambda *names, needs=(), **options: self._add(add_argument, *names, needs=needs, **options)
        return group

    def names_in_group(self, title):
        """Return the names of the arguments in a group, a list."""
        return [action.dest for group in self._action_groups if group.title == title for action in group._group_actions]

    def _add(self, add_argument, *names, needs, **options):
        needs_by_value = needs if isinstance(needs, dict) else {None: needs} if needs else {}
        needs_by_value = {value: (each,) if isinstance(each, str) else each for value, each in needs_by_value.items()}
        for value, each in needs_by_value.items():
            subject = 'needs' if value is None else f'{value} needs'
            options['help'] = f'{options["help"]}; {subject} {" and ".join(each)}'
        action = add_argument(*names, **options)
        if needs_by_value:
            self._needs[action.dest] = needs_by_value
        return action

    def parse_known_args(self, args=None, namespace=None):
        """Parse as argparse does; report an unknown flag before a missing one, which may be the unknown one misspelt."""
        args = sys.argv[1:] if args is None else list(args)
        flags = [text.partition('=')[0] for text in itertools.takewhile(lambda text: text != '--', args)]
        names = {flag: action.dest for action in self._actions for flag in action.option_strings}
        if self._subparsers is None:  # The parser of a sub-command checks the flags after its name.
            for flag in flags:
                self._check_flag(flag, names)
        self.given = {names[flag]: position for position, flag in enumerate(flags) if flag in names}
        parsed, unknown = super().parse_known_args(args, namespace)
        self._check_texts(parsed)
        return parsed, unknown

    def _check_texts(self, parsed):
        """Refuse empty values, as from a shell variable that is not set, values that TensorFlow cannot take, and named
        pipes and sockets, which a command that opens them would wait for."""
        for action in self._actions:
            values = getattr(parsed, action.dest, None)
            name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
            for value in filter(lambda value: isinstance(value, str), values if isinstance(values, list) else [values]):
                if not value:
                    self.error(f'{name} has an empty value, as from a variable that is not set')
                if not value.isprintable() and value != value.encode('utf-8', 'replace').decode():
                    self.error(f'{name} {value!r} is not UTF-8: rename the file or folder')
                if files.is_pipe(value):
                    self.error(f'{name} {value} is a pipe or a socket, where a file or a folder is expected')

    def _check_flag(self, name, known):
        is_flag = re.fullmatch(r'--?[A-Za-z]\S*', name)  # A negative number such as -1 is not a flag.
        if is_flag and name not in known:
            similar = ' or '.join(difflib.get_close_matches(name, known, 2))
            self.error(f'there is no flag {name}{f"; did you mean {similar}?" if similar else ""}')

    def error(self, message):
        """End the command with status 2 and one sentence."""
        self.exit(2, f'{self.prog}: error: {message}\n{self.prog} --help lists all flags.\n')

    def check(self, args):
        """Check the needs of the given flags as `check_needs` does, and print its warnings."""
        for warning in self.check_needs(args):
            warn(warning)

    def check_needs(self, args, given=None, only_warn=False):
        """Check that every given flag has the other flags that it needs; end through `error` where one is missing.

        A flag that was made idle by a later flag is only warned of and gets its default value: a user who appends a flag
        to a recipe cannot remove the flags of the recipe. A flag that is given as a default that means "off" needs nothing.

        Args:
            args: parsed arguments; idle flags are set to their defaults.
            given: {name of a given flag: position}; None: the flags of the last parsed command line.
            only_warn: warn of all idle flags, e.g. because the run already started with them.

        Returns: list of warnings.
        """
        positions = dict(self.given if given is None else given)
        unchecked, warnings = [name for name in self._needs if name in positions], []
        while idle := next(filter(None, (self._idle(args, name, positions) for name in unchecked)), None):
            if not (only_warn or idle.is_overridden):
                self.error(f'{idle.flag} needs {idle.need}')
            warnings.append(f'{idle.flag} is ignored because it needs {idle.need}.')
            setattr(args, idle.name, self.idle_value(args, idle.name))
            unchecked.remove(idle.name)
            positions[idle.name] = idle.position  # Flags that need this one are idle for the same reason.
        return warnings

    def idle_value(self, args, name):
        """Return the value of a flag that is ignored."""
        return self.get_default(name)

    def _idle(self, args, name, positions):
        """Return the unmet need of a given flag as an `_Idle`, or None."""
        value = getattr(args, name)
        if value == self.idle_value(args, name) and not is_on(value):
            return None
        for value_in_need, needs in self._needs[name].items():
            for need in needs if value_in_need in (None, value) else ():
                needed = [_Needed(*re.fullmatch(r'--(\w+) ?(\S*)', text).groups()) for text in need.split(' or ')]
                if not any(each.holds(args) for each in needed):
                    position = max(positions.get(each.name, -1) for each in needed)
                    facts = [f'--{each.name} is {getattr(args, each.name)}' for each in needed
                             if is_on(getattr(args, each.name)) or each.name in positions]
                    return _Idle(name, f'--{name}{"" if value_in_need is None else f" {value_in_need}"}',
                                 f'{need}{", but " if facts else ""}{" and ".join(facts)}',
                                 positions[name] < position, position)
        return None


class _Needed(NamedTuple):
    """A flag that another one needs: `values` are separated by |, '' means any value that is on."""
    name: str
    values: str

    def holds(self, args):
        value = getattr(args, self.name)
        return str(value) in self.values.split('|') if self.values else is_on(value)


class _Idle(NamedTuple):
    """A flag without effect, its need in words, and whether a later flag made it so."""
    name: str
    flag: str
    need: str
    is_overridden: bool
    position: int


def is_on(value):
    """Return whether the value of a flag switches something on."""
    return bool(value) and value != 'none'


def positive_int(text, largest=LARGEST_INT):
    """Parse an int of 1 or more, for argparse."""
    return _int_from(1, text, largest)


def non_negative_int(text):
    """Parse an int of 0 or more, for argparse."""
    return _int_from(0, text, LARGEST_INT)


def threads(text):
    """Parse a number of threads or processes, for argparse."""
    return positive_int(text, MOST_THREADS)


def side(text):
    """Parse the height or width of an image in pixels, for argparse."""
    return positive_int(text, LONGEST_SIDE)


def dimensions(text):
    """Parse the number of dimensions of an embedding, for argparse."""
    return positive_int(text, MOST_DIMENSIONS)


def port(text):
    """Parse the number of a TCP port, for argparse; 0 means any free port."""
    return _int_from(0, text, MOST_PORTS)


def _int_from(smallest, text, largest):
    number = int(text)
    if not smallest <= number <= largest:
        raise argparse.ArgumentTypeError(f'{text} is not {smallest} or more (and at most {largest})')
    return number


def positive_float(text):
    """Parse a finite number above 0, for argparse."""
    return _float_if(lambda number: 0 < number < math.inf, text, 'a number above 0')


def non_negative_float(text):
    """Parse a finite number of 0 or more, for argparse."""
    return _float_if(lambda number: 0 <= number < math.inf, text, 'a number of 0 or more')


def fraction(text):
    """Parse a number from 0 to 1, for argparse."""
    return _float_if(lambda number: 0 <= number <= 1, text, 'a number from 0 to 1')


def inner_fraction(text):
    """Parse a number above 0 and below 1, for argparse."""
    return _float_if(lambda number: 0 < number < 1, text, 'a number between 0 and 1')


def number_up_to(largest):
    """Return the type of a number from 0 to `largest`, for argparse."""
    def number(text):
        return _float_if(lambda number: 0 <= number <= largest, text, f'a number from 0 to {largest}')
    return number


def _float_if(is_valid, text, description):
    number = float(text)
    if not is_valid(number):
        raise argparse.ArgumentTypeError(f'{text} is not {description}')
    return number


def color_jitter(text):
    """Check four comma-separated strengths (brightness, contrast, saturation, hue), for argparse.

    They stay a string, as args.json stores them.
    """
    numbers = [non_negative_float(number) for number in text.split(',')]
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f'{text} is not four numbers with commas between: brightness, contrast, '
                                         f'saturation and hue')
    if numbers[3] > 0.5:
        raise argparse.ArgumentTypeError(f'the last number of {text}, the hue, is a fraction of the colour circle: at '
                                         f'most 0.5')
    if not any(numbers):
        raise argparse.ArgumentTypeError(f'{text} changes nothing: leave it out')
    return text


def iterations(text):
    """Check comma-separated iterations in ascending order, for argparse; they stay a string, as args.json stores them."""
    numbers = [positive_int(number) for number in text.split(',')]
    if numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f'{text} is not in ascending order')
    return text


def excluder(text):
    """Check the name of an excluder, or regex:PATTERN, for argparse."""
    try:
        exclusion.load(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(error) from error
    return text


def margin(text):
    """Parse a margin, for argparse: a finite number as float, 'soft' or 'none'."""
    if text in ('soft', 'none'):
        return text
    try:
        number = float(text)
    except ValueError:
        number = float('nan')
    if not abs(number) < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number, soft or none')
    return number


class OneOrMore(argparse.Action):
    """An action for a flag with `nargs='+'`: store a single value as itself and several values as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


# The values of --dask, for its help string.
DASK_ADDRESS = "its scheduler's address or scheduler file, or local:N for N processes on this host"
# Options of a flag for the embeddings of a dataset: a file, or all of its shards, as a list.
EMBEDDINGS_OPTIONS = {'metavar': 'H5', 'nargs': '+'}


def refuse_given(parser, names, reason):
    """End with an error if the last parsed command line sets one of these arguments, which would have no effect."""
    given = sorted(parser.given.keys() & set(names))
    if given:
        parser.error(f'{", ".join(f"--{name}" for name in given)} without effect: {reason}')

"""Command lines: the parser of every command, and types whose values come with a sentence for what is wrong with them.

And which flags were given, for those that have no effect with others.
"""
import argparse
import difflib
import itertools
import re
import sys

import excluders
from tripletreid.errors import InputError

LARGEST_INT = 2 ** 31 - 1  # What TensorFlow's shapes, steps and seeds take everywhere.
# Far beyond what is of use; behind them libraries abort where they should raise.
MOST_THREADS = 1024
LONGEST_SIDE = 16384
MOST_DIMENSIONS = 16384
MOST_PORTS = 65535


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with an example below the help, and with errors that are one sentence and no list of all flags.

    Flags are never abbreviated: a flag that is added later would change what such a command line means.
    """

    def __init__(self, *, example=None, **options):
        """
        Args:
            example: command lines, as they are typed.
            options: of argparse; the description is printed as it is laid out.
        """
        lines = [f'  {line}' for line in (example or '').splitlines()]
        super().__init__(epilog='\n'.join(['example:', *lines]) if lines else None, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; a flag that there is not is told before what is missing: it may be that one, misspelt."""
        args = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:  # What follows the name of a command is for the parser of that command.
            for text in itertools.takewhile(lambda text: text != '--', args):
                self._check_flag(text.partition('=')[0])
        return super().parse_known_args(args, namespace)

    def _check_flag(self, name):
        known = [flag for action in self._actions for flag in action.option_strings]
        is_flag = re.fullmatch(r'--?[A-Za-z]\S*', name)  # -1 is a number.
        if is_flag and name not in known:
            similar = ' or '.join(difflib.get_close_matches(name, known, 2))
            self.error(f'there is no flag {name}{f"; did you mean {similar}?" if similar else ""}')

    def error(self, message):
        """End the command with status 2 and one sentence."""
        self.exit(2, f'{self.prog}: error: {message}\n{self.prog} --help lists all flags.\n')


def positive_int(text, largest=LARGEST_INT):
    """An int of 1 or more, for argparse."""
    return _int_from(1, text, largest)


def non_negative_int(text):
    """An int of 0 or more, for argparse."""
    return _int_from(0, text, LARGEST_INT)


def threads(text):
    """A number of threads or processes, for argparse."""
    return positive_int(text, MOST_THREADS)


def side(text):
    """The height or width of an image in pixels, for argparse."""
    return positive_int(text, LONGEST_SIDE)


def dimensions(text):
    """The number of dimensions of an embedding, for argparse."""
    return positive_int(text, MOST_DIMENSIONS)


def port(text):
    """The number of a TCP port, for argparse; 0 is any that is free."""
    return _int_from(0, text, MOST_PORTS)


def _int_from(smallest, text, largest):
    number = int(text)
    if not smallest <= number <= largest:
        raise argparse.ArgumentTypeError(f'{text} is not {smallest} or more (and at most {largest})')
    return number


def positive_float(text):
    """A finite number above 0, for argparse."""
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a number above 0')
    return number


def non_negative_float(text):
    """A finite number of 0 or more, for argparse."""
    number = float(text)
    if not 0 <= number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a number of 0 or more')
    return number


def share(text):
    """A number from 0 to 1, for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number from 0 to 1')
    return number


def number_up_to(largest):
    """The type of a number from 0 to `largest`, for argparse."""
    def number(text):
        if not 0 <= float(text) <= largest:
            raise argparse.ArgumentTypeError(f'{text} is not a number from 0 to {largest}')
        return float(text)
    return number


def color_jitter(text):
    """Strengths of brightness, contrast, saturation and hue with commas between, for argparse; they stay a text, as
    args.json holds them."""
    numbers = [non_negative_float(number) for number in text.split(',')]
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f'{text} is not four numbers with commas between: brightness, contrast, '
                                         f'saturation and hue')
    if numbers[3] > 0.5:
        raise argparse.ArgumentTypeError(f'the last number of {text}, of the hue, is a part of the colour circle: at most '
                                         f'0.5')
    if not any(numbers):
        raise argparse.ArgumentTypeError(f'{text} changes nothing: leave it out')
    return text


def inner_share(text):
    """A number between 0 and 1, and neither, for argparse."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number between 0 and 1')
    return number


def iterations(text):
    """Iterations in ascending order with commas between, for argparse; they stay a text, as args.json holds them."""
    numbers = [positive_int(number) for number in text.split(',')]
    if numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f'{text} is not in ascending order')
    return text


def excluder(text):
    """The name of an excluder, or regex:PATTERN, for argparse."""
    try:
        excluders.load(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(error) from error
    return text


def margin(text):
    """A finite number as float, 'soft' or 'none', for argparse."""
    if text in ('soft', 'none'):
        return text
    try:
        number = float(text)
    except ValueError:
        number = float('nan')
    if not abs(number) < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is none of: a number, soft, none')
    return number


class OneOrMore(argparse.Action):
    """For a flag with `nargs='+'`: one value is kept as itself, as ever, and several as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


# What --dask takes, for its line of help.
DASK_ADDRESS = "its scheduler's address or scheduler file, or local:N for N processes on this host"
# Options of a flag for the embeddings of a dataset: a file, or all of its shards, as a list.
OF_EMBEDDINGS = {'metavar': 'H5', 'nargs': '+'}


def given_on_command_line(parser, argv=None):
    """Names of the arguments that the command line sets, whatever their values; a set."""
    absent = object()
    untouched = {name: absent for name in vars(parser.parse_args(argv))}
    given = parser.parse_args(argv, argparse.Namespace(**untouched))
    return {name for name, value in vars(given).items() if value is not absent}


def refuse_given(parser, names, reason):
    """Leave with an error where the command line sets one of these arguments, which would have no effect."""
    given = sorted(given_on_command_line(parser) & set(names))
    if given:
        parser.error(f'{", ".join(f"--{name}" for name in given)} without effect: {reason}')

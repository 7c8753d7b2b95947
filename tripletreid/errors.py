"""Report errors outside of the code to the user.

Functions raise `InputError` with one sentence: the problem, the file or value, and the remedy. Commands run their `main`
through `exit_with`, which turns that into a line on standard error and a status.
"""
import contextlib
import errno
import os
import re
import sys

JOINERS = '\u200c\u200d'  # Part of words in Persian and of emoji, though not printable by themselves.


class InputError(Exception):
    """A file, a flag or a value that the user gave cannot be used; the message is one clear sentence."""


def printable(text):
    """Return a text in one line that is safe for a terminal: control characters, as in a file's name, become escapes."""
    return ''.join(character if character.isprintable() or character in JOINERS
                   else character.encode('unicode_escape', 'surrogatepass').decode() for character in str(text))


def warn(sentence):
    """Print a warning, which does not end the command, on standard error."""
    print(f'warning: {printable(sentence)}', file=sys.stderr)


def some(names):
    """Return the number of names and the first three: '5 (a, b, c, ...)'."""
    names = sorted(set(names))
    if not names:
        return '0'
    return f'{len(names)} ({", ".join(map(printable, names[:3]))}{", ..." if len(names) > 3 else ""})'


def listed(names):
    """Return the first names and the number of the others: 'a, b, c and 5 more'."""
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if names[3:] else '')


def sentence_of(error):
    """Return an OSError as one sentence."""
    where = f'{error.filename}: ' if error.filename else ''
    return f'{where}{error.strerror or error}.'


def is_out_of_memory(error):
    """Return whether an exception of Python, NumPy, the system or TensorFlow reports a lack of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # A library does not find room for its code.
        return 'failed to map segment' in str(error) or os.strerror(errno.ENOMEM) in str(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):  # Its stack does not fit.
        return True
    # By name, because TensorFlow is not imported for the sake of an error.
    return isinstance(error, MemoryError) or type(error).__name__ == 'ResourceExhaustedError'


def exit_with(main, lower=''):
    """Run `main()` and leave the process: 0 when it returns, 1 with one sentence for a known error.

    An `OSError` (a full disk, a missing permission, a removed directory) and a lack of memory are known errors, too. Any
    other exception is a bug of this project and keeps its traceback.

    Args:
        main: function without arguments.
        lower: the flags that lower the memory it needs, in words.
    """
    try:
        main()
        _flush_output()
        sys.exit(0)
    except InputError as error:
        sentence = str(error)
    except BrokenPipeError:
        sentence = None  # The reader of the output has ended, as `| head` does, which is not an error to report.
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if is_out_of_memory(error):
            reason = sentence_of(error) if isinstance(error, OSError) else str(error)
            reason = re.sub(r'\{\{.*?\}\} ?| \[Op:\w+\]', '', (reason.splitlines() or [''])[0]).rstrip('. ')
            sentence = (f'There is not enough memory{f" ({reason})" if reason else ""}'
                        f'{f"; lower {lower}" if lower else ""}.')
        elif isinstance(error, OSError):
            sentence = sentence_of(error)
        else:
            raise
    with contextlib.suppress(OSError):
        if sentence:
            print(f'error: {printable(sentence)}', file=sys.stderr)
    try:
        _flush_output()
    except OSError:  # Python would try once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(1)


def _flush_output():
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = error.filename or 'standard output'
        raise

"""What the user is told when something outside the code is wrong.

Functions raise `InputError` with one sentence: what is wrong, with which file or value, and what to do.
Scripts run their `main` through `exit_with`, which turns that into a line on standard error and a status.
"""
import sys


class InputError(Exception):
    """A file, a flag or a value that the user gave cannot be used; the message is one clear sentence."""


def warn(sentence):
    """Tell the user something on standard error that does not end the command."""
    print(f'warning: {sentence}', file=sys.stderr)


def some(names):
    """How many there are and the first three: '5 (a, b, c, ...)'."""
    names = sorted(set(names))
    if not names:
        return '0'
    return f'{len(names)} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'


def sentence_of(error):
    """What an OSError says, as one sentence."""
    where = f'{error.filename}: ' if error.filename else ''
    return f'{where}{error.strerror or error}.'


def exit_with(main):
    """Run `main()` and leave the process: 0 when it returns, 1 with one sentence for a known error.

    An `OSError` (a full disk, a missing permission, a directory that went away) is a known error as well.
    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        sys.exit(main())
    except InputError as error:
        sentence = str(error)
    except BrokenPipeError:
        sys.stderr.close()  # The reader of our output left, as `| head` does: that is not an error to report.
        sys.exit(1)
    except OSError as error:
        sentence = sentence_of(error)
    except KeyboardInterrupt:
        sys.exit(130)
    print(f'error: {sentence}', file=sys.stderr)
    sys.exit(1)

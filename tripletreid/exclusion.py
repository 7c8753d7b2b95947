"""The excluder that `--excluder` names: which gallery images a query ignores."""
from tripletreid import plugins
from tripletreid.errors import InputError


def load(text):
    """Load an excluder.

    Args:
        text: the name of a file in excluders/; or NAME:ARGUMENT for one that takes an argument, as `regex:PATTERN`.

    Returns: a callable that takes gallery file ids [G] and returns an `Excluder`: a callable that takes query file ids
        [Q] and returns the images to ignore, bool [Q, G], an array of the caller's own. It may have `junk`, bool [G]:
        images that every query ignores; and `ids(fids)`: (identity, camera) of each file id.

    Raises:
        InputError: no such file, a missing or needless argument, or one that the excluder refuses.
    """
    name, colon, argument = text.partition(':')
    module = plugins.load('excluders', name)
    if hasattr(module, 'with_argument'):
        return module.with_argument(argument)
    if colon:
        raise InputError(f'The excluder {name} takes no argument after a colon: {text}.')
    return module.Excluder

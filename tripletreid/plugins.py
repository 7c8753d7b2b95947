"""Find and load plug-ins: one file per choice, named as the value of the flag. `_name.py` is a helper, not a choice."""
import importlib
import pathlib

from tripletreid.errors import InputError

HERE = pathlib.Path(__file__).resolve().parent.parent


def choices(folder):
    """Return the sorted names of the plug-ins in `folder` ('nets', 'heads', 'losses', 'excluders', 'layouts')."""
    return sorted(file.stem for file in (HERE / folder).glob('[!_]*.py'))


def load(folder, name):
    """Import the plug-in `name` of `folder`; only a name that the folder lists is ever imported."""
    if name not in choices(folder):
        raise InputError(f'There is no {name!r} in {folder}/; choose from {", ".join(choices(folder))}.')
    return importlib.import_module(f'{folder}.{name}')


def load_helper(folder, name):
    """Import the helper `_name.py` of `folder`."""
    return importlib.import_module(f'{folder}.{name}')

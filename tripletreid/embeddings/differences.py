"""Were two sets of embeddings made in the same way? The one rule, which every command that compares embeddings uses."""
from typing import NamedTuple

from tripletreid.errors import InputError

# Parameters of `embed.py` for places of files and for the work, without effect on the embeddings. All others count.
NO_CONSEQUENCE = {'allow_outside_root', 'batch_size', 'dask', 'dataset', 'devices', 'distribute', 'experiment_root',
                  'filename', 'image_root', 'loading_threads', 'metric', 'quiet', 'resume', 'shards',
                  'skip_broken_images'}
# Values of parameters that older files do not record, because there was no choice then.
BEFORE_RECORDED = {'mixed_precision': 'none', 'resize': 'tf1', 'jpeg': 'fast', 'weights': None, 'pool_tracklets': None}
WORDS = {'checkpoint_sha256': 'another checkpoint', 'weights': 'other weights of the checkpoint',
         'flip_augment': 'other test-time augmentation', 'crop_augment': 'other test-time augmentation',
         'aggregator': 'other test-time augmentation', 'mixed_precision': 'another precision',
         'resize': 'another --resize', 'jpeg': 'another --jpeg', 'pool_tracklets': 'other pooling of tracklets'}


class Difference(NamedTuple):
    """A parameter that differs: its name and its two values."""
    name: str
    first: object
    second: object

    def __str__(self):
        return f'{self.name} is {self.first} and {self.second}'


def differences(first, second):
    """Return in which ways two sets of embeddings were made differently.

    Args:
        first, second: parameters as `.h5` files record them, dicts. Files of the original record nothing and differ from
            nothing; a name that only one of the two has counts only where BEFORE_RECORDED has the other's value.

    Returns: a list of `Difference`, sorted by name; empty where both were made in the same way as far as is known.
    """
    if not first or not second:
        return []
    ignored = set(NO_CONSEQUENCE)
    if first.get('checkpoint_sha256') and second.get('checkpoint_sha256'):
        ignored.add('checkpoint')  # A copy of a checkpoint may have another name.
    found = []
    for name in sorted((set(first) | set(second)) - ignored):
        default = BEFORE_RECORDED.get(name)
        if name in BEFORE_RECORDED or name in first and name in second:
            values = first.get(name, default), second.get(name, default)
            if values[0] != values[1]:
                found.append(Difference(name, *values))
    return found


def check_unchanged(embeddings, recorded, path):
    """Check that embeddings are still made as when a file recorded their parameters.

    Args:
        embeddings: open `Embeddings`.
        recorded: their parameters when the file was made, a dict; empty where they were not recorded.
        path: path of the file that was made from them, for the message.

    Raises:
        InputError: they were made again in another way.
    """
    found = differences(recorded, embeddings.parameters)
    if found:
        raise InputError(f'{path} was made from other embeddings than {embeddings.path} holds now: '
                         f'{", ".join(f"{each.name} was {each.first} and is {each.second}" for each in found)}. Make it '
                         f'again.')


def difference(first, second):
    """Return in words the first way in which two sets of embeddings differ, or None; arguments as `differences`."""
    found = differences(first, second)
    return WORDS.get(found[0].name, 'another net or size of images') if found else None

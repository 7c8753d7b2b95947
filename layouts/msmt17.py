"""MSMT17: list_train.txt, list_val.txt, list_query.txt, list_gallery.txt and train/, test/ (V2: mask_*_v2/).

Training takes list_train.txt and list_val.txt together, which share their identities. The identities of the test set
are other people, though they are counted from 0000 again.

Wei et al., Person Transfer GAN to Bridge Domain Gap for Person Re-Identification, CVPR 2018.
"""
import os

from layouts import _files, _held_out

EXCLUDER = 'msmt17'
TOTALS = {
    **_held_out.TOTALS,
    'train': {'identities': 1041, 'images': 32621},
    'query': {'identities': 3060, 'images': 11659},
    'test': {'identities': 3060, 'images': 82161},
}

add_arguments = _held_out.add_arguments


def splits(root, val_fraction=None, seed=0):
    """Return the rows of each subset; see `_held_out.divide`."""
    train, test = 'train', 'test'
    if os.path.isdir(os.path.join(root, 'mask_train_v2')):
        train, test = 'mask_train_v2', 'mask_test_v2'
    rows = listed(root, 'list_train.txt', train) + listed(root, 'list_val.txt', train)
    return {
        **_held_out.divide(rows, EXCLUDER, val_fraction, seed),
        'query': listed(root, 'list_query.txt', test),
        'test': listed(root, 'list_gallery.txt', test),
    }


def listed(root, name, folder):
    """Return the rows of a list file, which has lines such as `0000/0000_001_01_0303morning_0008_0_ex.jpg 0`."""
    table = _files.read_table(_files.find(root, name), 2)
    return [(path.split('/')[0], f'{folder}/{path}') for path, _ in table]

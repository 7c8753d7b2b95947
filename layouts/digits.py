"""Scanned digits, 8 x 8 pixels, which come with scikit-learn: 1797 images, exported as PNG into ROOT/digits/.

A small dataset to try everything with. 100 images of each digit train, 20 are queries and the others the test set;
which ones is drawn with a seed.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository 1998.
"""
import os

from layouts import _files

EXCLUDER = 'diagonal'
TOTALS = {
    'train': {'identities': 10, 'images': 1000},
    'query': {'identities': 10, 'images': 200},
    'test': {'identities': 10, 'images': 597},
}


def add_arguments(parser):
    parser.add_argument('--seed', type=int, default=0, help='seed of the split (default: 0)')


def splits(root, seed=0):
    """Return the rows of each subset; the folder `root` is made when it is not there."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    names = [f'{number:04}.png' for number in range(len(digits.target))]
    pixels = (digits.images * 255 / 16).round().astype('uint8')  # [N, 8, 8], from 0..16
    os.makedirs(root, exist_ok=True)
    _files.export_png(root, 'digits', zip(names, pixels), len(names))
    subsets = {'train': [], 'query': [], 'test': []}
    for digit in range(10):
        own = [name for name, target in zip(names, digits.target) if target == digit]
        rows = [(str(digit), f'digits/{name}') for name in _files.shuffled(own, seed)]
        subsets['train'] += rows[:100]
        subsets['query'] += rows[100:120]
        subsets['test'] += rows[120:]
    return subsets
